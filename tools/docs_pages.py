"""Pages of the documentation site that are made from the code: verbs, recipe keys, Python functions, figures, glossary.

A hook of MkDocs (``mkdocs.yml``); ``python tools/docs_pages.py`` prints them.
"""

from __future__ import annotations

import inspect
import json
import re
import runpy
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NOTE = "*This page is made from the code.*\n\n"


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown."""
    made = {
        "reference/cli.md": cli(),
        "reference/recipes.md": recipes(),
        "reference/python.md": python(),
        "reference/figures.md": figures(),
        "reference/folders.md": folders(),
        "reference/schemas.md": schema_page(),
        "glossary.md": glossary(),
        **{f"schemas/{name}.json": json.dumps(schema, indent=2) + "\n" for name, schema in schemas().items()},
    }
    return {**made, "llms.txt": llms(made)}


def schemas() -> dict[str, dict[str, Any]]:
    """JSON Schemas by name."""
    found: dict[str, dict[str, Any]] = runpy.run_path(str(Path(__file__).with_name("schemas.py")))["schemas"]()
    return found


def schema_page() -> str:
    """Where the schemas are."""
    rows = [[f"[{name}.json](../schemas/{name}.json)", schema["description"]] for name, schema in schemas().items()]
    return (
        f"# JSON Schemas\n\n{NOTE}Of what people and programs write and read here (draft 2020-12). A schema says which"
        " keys there are, with types, ranges, defaults and meaning; what two keys may not say together is checked when"
        " a recipe is read, and refused in one line.\n\n" + _table(["schema", "of"], rows) + "\n"
    )


def llms(made: dict[str, str]) -> str:
    """The site for language models: every page in the order of its navigation, with its first sentence."""
    root = Path(__file__).resolve().parents[1]
    config = yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))
    out = [f"# {config['site_name']}", f"> {config['site_description']}"]

    def entry(path: str) -> str:
        text = made.get(path) or (root / "docs" / path).read_text(encoding="utf-8")
        title = next(line[2:] for line in text.splitlines() if line.startswith("# "))
        prose = re.sub(r"^(```.*?^```|[|#!<].*?|- .*?)$", "", text, flags=re.M | re.S)
        said = re.search(r"^\S.*?(?=\n\s*\n|\Z)", prose, re.M | re.S)
        first = re.split(r"(?<=[.:;])\s", " ".join(said[0].split()))[0] if said else ""
        about = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", first).rstrip(":;")
        return f"- [{title}]({path.removesuffix('.md')}.html)" + (f": {about}" if about else "")

    def walk(name: str, nav: Any) -> None:
        entries = [nav] if isinstance(nav, str) else nav
        out.append(f"## {name}")
        lines = [entry(e) for e in entries if isinstance(e, str)]
        out.append("\n".join(lines)) if lines else None
        for e in entries:
            if isinstance(e, dict):
                for inner, below in e.items():
                    walk(f"{name}: {inner}", below)

    for part in config["nav"]:
        for name, nav in part.items():
            walk(name, nav)
    return "\n\n".join(out) + "\n"


def cli() -> str:
    """Every verb with its own help."""
    import typer

    from workbench.cli import VERBS, app, words_of
    from workbench.markup.glossary import anchor

    group = typer.main.get_command(app)
    out = ["# Command line", NOTE, "Every verb takes `--help`; those that make something take `--json`.\n"]
    for verb, (line, _) in VERBS.items():
        command = group.commands[verb]  # type: ignore[attr-defined]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join([f"workbench {verb}", *(_argument(p) for p in arguments), "[OPTIONS]"])
        out += [f"## {verb}", line, f"```\n{usage}\n```", inspect.cleandoc(command.help or "")]
        rows = [_parameter(p) for p in command.params if not getattr(p, "hidden", False)]
        out.append(_table(["option", "default", "what it does"], rows))
        if said := [f"[{word}](../glossary.md#{anchor(word)})" for word, _ in words_of(command)]:
            out.append(f"Words: {', '.join(said)}.")
    return "\n\n".join(out) + "\n"


def _argument(p: Any) -> str:
    name = (p.metavar or p.name).upper()
    return name if p.required else f"[{name}]"


def _parameter(p: Any) -> list[str]:
    name = ", ".join([*p.opts, *p.secondary_opts]) if p.param_type_name == "option" else (p.metavar or p.name).upper()
    plain = p.default in (None, "", (), []) or callable(p.default) or p.default is False
    return [f"`{name}`", "" if plain else f"`{p.default}`", p.help or ""]


def recipes() -> str:
    """Every key of every recipe, from the models' own fields."""
    out = [
        "# Recipes",
        NOTE,
        "A recipe is a TOML file, or the name of a bundled one. An unknown key is refused, and the nearest is named.\n",
    ]
    bundled = _bundled()
    for title, model, text in _recipe_models():
        out += [f"## {title}", text]
        if names := bundled.get(title):
            out.append("Bundled: " + ", ".join(f"`{n}`" for n in names) + ".")
        rows = [
            [f"`{name}`", f"`{_type(field)}`", f"`{_default(field)}`", field.description or ""]
            for name, field in model.model_fields.items()
        ]
        out.append(_table(["key", "type", "default", "what it means"], rows))
    return "\n\n".join(out) + "\n"


def _recipe_models() -> Iterator[tuple[str, Any, str]]:
    from crosscoders.config import CrosscoderConfig
    from sae.config import ActivationConfig, InitConfig, MeshConfig, OptimizerDetails, SAEConfig, TranscoderConfig
    from workbench.activations.harvesting.recipe import HarvestRecipe
    from workbench.activations.harvesting.recipe import SourceRecipe as HarvestSource
    from workbench.analysis.evolution.recipe import EvolveRecipe
    from workbench.analysis.evolution.recipe import SourceRecipe as EvolveSource
    from workbench.corpus.config import CorpusConfig
    from workbench.dictionaries.recipe import TrainRecipe
    from workbench.models.pretrain import PretrainRecipe

    yield "harvest", HarvestRecipe, "Of `workbench harvest`: which activations of which models on which text."
    yield "harvest [[sources]]", HarvestSource, "One model of a harvest."
    yield "corpus", CorpusConfig, "The text, as `[corpus]` of a harvest or pretrain recipe."
    yield "train", TrainRecipe, "Of `workbench train`: dictionaries on a store."
    yield (
        "train [sae]",
        SAEConfig,
        "How a dictionary is trained (`d_in`, `d_sae`, `k` and `seed` come from the lists above).",
    )
    yield "train [sae] at transcoder sites", TranscoderConfig, "The same for transcoders."
    yield "activation", ActivationConfig, '`activation = "batchtopk"`, or a table with `kind` and these settings.'
    yield "start", InitConfig, "How weights begin."
    yield "details", OptimizerDetails, "Particulars of the optimiser."
    yield "parallel", MeshConfig, "How processes share the work."
    yield "evolve", EvolveRecipe, "Of `workbench evolve`: a crosscoder over snapshots or models."
    yield "evolve [[sources]]", EvolveSource, "One model or snapshot of a crosscoder."
    yield "crosscoder", CrosscoderConfig, "How a crosscoder is trained."
    yield "pretrain", PretrainRecipe, "Of `workbench pretrain`: a miniature language model with snapshots."


def _bundled() -> dict[str, list[str]]:
    from sae.errors import ConfigError
    from sae.strict import read_toml
    from workbench.config import data_dir, kind_of

    out: dict[str, list[str]] = {}
    for path in sorted((data_dir() / "recipes").glob("*.toml")):
        try:
            out.setdefault(kind_of(read_toml(path), str(path)), []).append(path.stem)
        except ConfigError:
            continue  # a part of other recipes
    return out


def _type(field: Any) -> str:
    kind = field.annotation
    text = kind.__name__ if inspect.isclass(kind) and not getattr(kind, "__args__", None) else str(kind)
    text = re.sub(r"\b(?:typing|collections\.abc|pathlib|sae|crosscoders|workbench)\.(?:\w+\.)*", "", text)
    return text.replace("NoneType", "None").replace("|", "or")


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its own table"
    return str(list(value) if isinstance(value, tuple) else value)


def python() -> str:
    """Directives for every public name; mkdocstrings reads the docstrings."""
    import crosscoders
    import sae
    import workbench

    out = ["# Python", NOTE]
    intro = {
        "workbench": "One function per verb: a workspace or its path, what to work on, and options by name.",
        "sae": "Dictionary learning: no language models, no stores.",
        "crosscoders": "One latent space over several sources.",
    }
    for package in (workbench, sae, crosscoders):
        name = package.__name__
        out += [f"## {name}", intro[name]]
        for member in sorted(n for n in package.__all__ if not n.startswith("__")):
            found = getattr(package, member)
            if inspect.isclass(found) or inspect.isfunction(found):
                out.append(f"::: {found.__module__}.{found.__qualname__}")
    return "\n\n".join(out) + "\n"


def figures() -> str:
    """What `workbench export` draws."""
    from workbench.exporting.figures import figure_kinds
    from workbench.exporting.reading import bundled_specs, read_spec

    specs = {name: read_spec(name).figure for name in bundled_specs()}
    out = [
        "# Figures",
        NOTE,
        "`workbench export NAME`, each from a result of the kind named; `--set key=value` sets an option.\n",
    ]
    for name, kind in figure_kinds().items():
        out += [f"## {name}", f"{kind.title}, from `{kind.source}/`."]
        if own := [s for s, f in specs.items() if f == name]:
            out.append("Bundled specifications: " + ", ".join(f"`{s}`" for s in own) + ".")
        rows = [
            [f"`{key}`", f"`{_default(field)}`", field.description or ""]
            for key, field in kind.options.model_fields.items()
        ]
        if rows:
            out.append(_table(["option", "default", "what it does"], rows))
    return "\n\n".join(out) + "\n"


def folder_formats() -> dict[str, Any]:
    """What lies in the folder of every kind of result, by kind; ``columns`` are what columns mean where no table says
    otherwise.
    """
    return tomllib.loads(Path(__file__).with_name("folders.toml").read_text(encoding="utf-8"))


def column_line(formats: dict[str, Any], table: dict[str, Any], name: str) -> str:
    """What a column means: its table's own line, the shared one, or the glossary's; empty where none says."""
    from workbench.markup.glossary import meaning

    return str(table.get(name) or formats["columns"].get(name) or meaning(name) or "")


def folders() -> str:
    """Every kind of result folder: who makes it, its files, columns and keys."""
    from workbench.provenance import SCHEMA, Manifest, numbers_schema
    from workbench.workspace import KINDS, MADE_BY

    formats = folder_formats()
    fields = [[f"`{k}`", f.description or ""] for k, f in Manifest.model_fields.items()]
    out = [
        "# Result folders",
        NOTE,
        "A workspace is a folder of folders, `<kind>/<id>/`, each written once and whole: `manifest.json` is written"
        " last, so a folder without it is not a result. Tables are Parquet, arrays NumPy files without pickle, texts"
        " JSON in UTF-8; no time stamps, no absolute paths, so a workspace may be copied. A cell that is null"
        " was not computed; it is never 0. What is read is never changed: a result is made anew with `--replace`, and"
        " `workbench info --stale` names those that rest on something made again since.\n",
        f"## manifest.json\n\nVersion {SCHEMA} of this form ([schema](../schemas/manifest.json)); a newer one is"
        " refused by name. Its SHA-256 begins with the *data version* that pages and figures show.\n",
        _table(["key", "what it holds"], fields),
    ]
    for kind in KINDS:
        about = formats[kind]
        made = f" Made by `workbench {MADE_BY[kind].split()[0]}`." if kind in MADE_BY else ""
        version = f" Schema of its numbers: {numbers_schema(kind)}." if kind in MADE_BY else ""
        out += [f"## {kind}", f"{about['about']}{made} Id: {about['id']}.{version}"]
        files = about.get("files", {})
        rows = [[f"`{n}`", f if isinstance(f, str) else f"{f['about']} (below)"] for n, f in files.items()]
        out += [_table(["file", "what it holds"], rows)] if rows else []
        for name, table in files.items():
            if isinstance(table, dict):
                columns = [[f"`{c}`", column_line(formats, table, c)] for c in table["columns"].split()]
                out += [f"### {kind}: {name}", _table(["column", "what stands there"], columns)]
        keys = [[f"`{part}.{k}`", v] for part in ("numbers", "metadata") for k, v in about.get(part, {}).items()]
        out += [f"### {kind}: keys of its manifest", _table(["key", "what it is"], keys)] if keys else []
    return "\n\n".join(out) + "\n"


def glossary() -> str:
    """The words that carry a dotted underline on the pages, and what stands in columns and along axes."""
    from workbench.markup.glossary import LABELS, READ_ON, TERMS, anchor, pattern_lines

    def row(word: str, line: str) -> list[str]:
        return [f'<span id="{anchor(word)}"></span>**{word}**', line]

    words = sorted(TERMS.items(), key=lambda x: x[0].lower())
    rows = [[*row(w, line), f"[more]({READ_ON[w]})" if w in READ_ON else ""] for w, line in words]
    places = [row(word, line) for word, line in sorted(LABELS.items(), key=lambda x: x[0].lower())]
    axes = [[f"*{name}*", line] for name, line in pattern_lines()]
    return (
        f"# Glossary\n\n{NOTE}{_table(['word', 'what it means', ''], rows)}\n\n## Columns, numbers and axes\n\n"
        "What stands in tables, beside numbers and along axes of figures; the pages show the same lines on hover.\n\n"
        f"{_table(['name', 'what stands there'], places)}\n\n## Axes that name something\n\n"
        "A model, a metric or a latent stands in the place of the dots.\n\n"
        f"{_table(['axis', 'what it is'], axes)}\n"
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *(line(r) for r in rows)])


def on_files(files: Any, config: Any) -> Any:
    """MkDocs asks for its files: the made ones are added."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_post_build(config: Any) -> None:
    """MkDocs has written the site: maps of its scripts, which only people who change the theme read, are left out."""
    for path in Path(config["site_dir"]).rglob("*.map"):
        path.unlink()


if __name__ == "__main__":
    for path, text in pages().items():
        print(f"<!-- {path} -->\n{text}")
