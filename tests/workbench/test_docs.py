"""The documentation: every page is in the navigation, made pages hold all the code has, commands and links are real."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator

from sae.config import ActivationConfig, InitConfig, MeshConfig, SAEConfig, TranscoderConfig
from sae.strict import parse_config
from workbench.activations import HarvestRecipe
from workbench.analysis.evolution.recipe import EvolveRecipe
from workbench.cli import VERBS, app
from workbench.config import kind_of
from workbench.corpus.config import CorpusConfig
from workbench.dictionaries.recipe import TrainRecipe
from workbench.exporting.spec import FigureSpec, Style
from workbench.models.pretrain import PretrainRecipe
from workbench.provenance import FileDigest, Input, Manifest
from workbench.results.lists import LatentList, ListItem, save_list

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name not in ("RESULTS.md", "RESULTS-quick.md"))
GROUP = typer.main.get_command(app)
TABLES: dict[str, Any] = {"sae": TranscoderConfig, "corpus": CorpusConfig, "parallel": MeshConfig}


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "tools" / "docs_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return _load().pages()


def _nav() -> set[str]:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")

    def leaves(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        return [x for v in (value.values() if isinstance(value, dict) else value) for x in leaves(v)]

    return set(leaves(yaml.safe_load(text)["nav"]))


def test_every_page_is_in_the_navigation(made: dict[str, str]) -> None:
    written = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    there = written | {path for path in made if path.endswith(".md")}
    assert there == _nav()


def test_made_pages_hold_every_verb_key_function_and_word(made: dict[str, str]) -> None:
    import sae
    import workbench
    from crosscoders.config import CrosscoderConfig
    from workbench.markup.glossary import TERMS

    cli, recipes, python = (made[f"reference/{name}.md"] for name in ("cli", "recipes", "python"))
    for verb in VERBS:
        assert f"## {verb}\n" in cli
        for parameter in GROUP.commands[verb].params:  # type: ignore[attr-defined]
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert parameter.opts[0] in cli and parameter.help, (verb, parameter.name)
    for model in (HarvestRecipe, TrainRecipe, SAEConfig, CrosscoderConfig):
        assert all(f"| `{key}` |" in recipes for key in model.model_fields)
    for name in ("harvest", "train", "steer", "intervene"):
        assert f".{getattr(workbench, name).__name__}\n" in python
    assert sae.SAEConfig.__qualname__ in python and all(f"**{word}**" in made["glossary.md"] for word in TERMS)


def test_every_key_of_every_recipe_figure_and_manifest_says_what_it_means(made: dict[str, str]) -> None:
    from workbench.exporting.figures import figure_kinds

    recipes = [model for _, model, _ in _load()._recipe_models()]
    models = [*recipes, *(kind.options for kind in figure_kinds().values())]
    models += [FigureSpec, Style, Manifest, FileDigest, Input, LatentList, ListItem, InitConfig, ActivationConfig]
    for model in models:
        for key, field in model.model_fields.items():
            assert field.description and not field.description.endswith("."), f"{model.__name__}.{key}"
    empty = [
        line for line in made["reference/recipes.md"].splitlines() if line.startswith("| `") and line.endswith("|  |")
    ]
    assert not empty


SCHEMAS = json.loads(json.dumps(_load().schemas()))


@pytest.mark.parametrize("recipe", sorted((ROOT / "data" / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_bundled_recipes_fit_their_published_schema_and_typos_do_not(recipe: Path) -> None:
    values = tomllib.loads(recipe.read_text(encoding="utf-8"))
    schema = Draft202012Validator(SCHEMAS[kind_of(values, recipe.name)])
    assert [e.message for e in schema.iter_errors(values)] == []
    assert list(schema.iter_errors({**values, "sedd": 1}))
    assert list(schema.iter_errors({**values, "corpus": {"kind": "nope"}, "sae": {"lrr": 1}}))


def test_manifests_lists_and_specs_fit_their_published_schema(tmp_path: Path) -> None:
    from tests.ui.synthetic import make_workspace
    from tests.ui.synthetic_results import add_all

    ws = make_workspace(tmp_path / "ws", latents=8)
    add_all(ws)
    schema = Draft202012Validator(SCHEMAS["manifest"])
    found = sorted(ws.root.rglob("manifest.json")) + sorted((ROOT / "data" / "models").rglob("manifest.json"))
    assert len({p.parent.parent.name for p in found}) >= 8
    for path in found:
        values = json.loads(path.read_text(encoding="utf-8"))
        assert [e.message for e in schema.iter_errors(values)] == [], path
        assert list(schema.iter_errors({k: v for k, v in values.items() if k != "kind"}))
    save_list(ws.root, LatentList(name="mine", items=(ListItem(dictionary="x", latent=1),)), "mine")
    chosen = json.loads((ws.root / "lists" / "mine.json").read_text(encoding="utf-8"))
    Draft202012Validator(SCHEMAS["list"]).validate(chosen)
    for spec in sorted((ROOT / "data" / "specs").glob("*.toml")):
        Draft202012Validator(SCHEMAS["figure"]).validate(tomllib.loads(spec.read_text(encoding="utf-8")))


def test_llms_txt_names_every_page_once_with_a_line(made: dict[str, str]) -> None:
    text = made["llms.txt"]
    listed = re.findall(r"^- \[(.+?)\]\((.+?)\.html\)(.*)$", text, re.M)
    assert sorted(f"{path}.md" for _, path, _ in listed) == sorted(_nav())
    assert text.startswith("# Interpretability Workbench\n\n> ")
    assert all(about.startswith(": ") and "`" * 3 not in about and len(about) < 400 for _, _, about in listed), [
        (p, a) for _, p, a in listed if not a.startswith(": ") or len(a) >= 400
    ]
    for name in SCHEMAS:
        assert f"schemas/{name}.json" in made and f"schemas/{name}.json" in made["reference/schemas.md"]


@pytest.mark.parametrize("page", [ROOT / "README.md", *WRITTEN], ids=lambda p: p.stem)
def test_commands_on_a_page_exist_with_their_options(page: Path) -> None:
    """Every line that begins with ``workbench``, and every such command between backticks."""
    text = page.read_text(encoding="utf-8")
    commands = re.findall(r"^(?:torchrun .*-m )?workbench ([a-z]+)\b([^\n]*)", text, re.M)
    commands += [(v, rest) for v, rest in re.findall(r"`workbench ([a-z]+)\b([^`\n]*)`", text)]
    for verb, rest in commands:
        assert verb in VERBS, f"{page.name}: workbench {verb}"
        known = {o for p in GROUP.commands[verb].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}  # type: ignore[attr-defined]
        asked = set(re.findall(r"(?<=\s)--[a-z][a-z-]*", rest.split("#")[0]))
        assert asked <= known, f"{page.name}: workbench {verb} has no {sorted(asked - known)}"


@pytest.mark.parametrize(
    "page", [p for p in WRITTEN if "```toml" in p.read_text(encoding="utf-8")], ids=lambda p: p.stem
)
def test_recipes_on_a_page_are_read_as_recipes(page: Path) -> None:
    """Whole ones as their verb reads them; a single table by the keys of its model."""
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        values = tomllib.loads(block)
        for name, model in TABLES.items():
            table = values.get(name)
            if isinstance(table, dict):
                assert set(table) <= {*model.model_fields, "preset"}, (page.name, name)
        if set(values) <= set(TABLES):
            continue
        kind = kind_of(values, page.name)
        read = {"harvest": HarvestRecipe, "train": TrainRecipe, "evolve": EvolveRecipe, "pretrain": PretrainRecipe}[
            kind
        ]
        parse_config(read, values, where=page.name)


def test_there_is_an_answer_to_thirty_tasks_and_each_is_short() -> None:
    pages = [p for p in WRITTEN if p.parent.name == "how-to" and p.stem != "index"]
    index = (ROOT / "docs" / "how-to" / "index.md").read_text(encoding="utf-8")
    assert len(pages) >= 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert f"({page.name})" in index and len(text.split()) < 600 and text.startswith("# "), page.name


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.stem)
def test_links_on_a_page_lead_somewhere(page: Path, made: dict[str, str]) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        where = (page.parent / target).resolve()
        assert where.exists() or str(where.relative_to(ROOT / "docs")) in made, f"{page.name}: {target}"
