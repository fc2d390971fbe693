"""The command in the manifest of every result makes that result again: a demo workspace, and an empty one filled by
its recorded commands alone.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.workspace import KINDS, Workspace

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ORDER = ("stores", "dictionaries", "latents", "explanations", "matches", "circuits", "evolution", "graphs", "models")


def same_results():
    """The script that compares two workspaces."""
    spec = importlib.util.spec_from_file_location("same_results", ROOT / "tools" / "same_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(*words: str) -> None:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, f"{shlex.join(words)}: {done.output[-2000:]}"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    call("demo", "--no-ui", "--workspace", str(first))
    for item in workspace_items(first):
        call(
            *shlex.split(item.manifest.command)[1:], *(["--no-ui"] if item.kind == "models" else []), "-w", str(second)
        )
    return first, second


def workspace_items(root):
    """Every result, those that others are made from first; one per recorded command."""
    home = Workspace(root)
    found = {}
    for kind in ORDER:
        for item in home.items(kind):
            found.setdefault(item.manifest.command, item)
    return list(found.values())


def test_the_demo_makes_no_kind_that_is_not_tried_here(both):
    assert {kind for kind in KINDS if Workspace(both[0]).items(kind)} <= set(ORDER)


@pytest.mark.parametrize("kind", ORDER)
def test_the_recorded_command_makes_the_same_folder(both, kind):
    compare = same_results()
    first, second = (compare.files(root / kind) for root in both)
    assert first and first.keys() == second.keys()
    assert [name for name in first if compare.content(first[name]) != compare.content(second[name])] == []


def test_no_recorded_command_names_a_place_of_this_machine(both):
    for item in workspace_items(both[0]):
        manifest = json.loads((item.path / ("seal.json" if item.kind == "stores" else "manifest.json")).read_text())
        assert str(both[0]) not in json.dumps(manifest) and item.manifest.command.startswith("workbench ")
