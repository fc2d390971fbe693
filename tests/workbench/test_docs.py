"""The documentation: every page is in the navigation, made pages hold all the code has, commands and links are real."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from sae.config import MeshConfig, SAEConfig, TranscoderConfig
from sae.strict import parse_config
from workbench.activations import HarvestRecipe
from workbench.analysis.evolution.recipe import EvolveRecipe
from workbench.cli import VERBS, app
from workbench.config import kind_of
from workbench.corpus.config import CorpusConfig
from workbench.dictionaries.recipe import TrainRecipe
from workbench.models.pretrain import PretrainRecipe

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
    there = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")} | set(made)
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
