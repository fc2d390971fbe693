"""What rests on something that was made again is marked, and the commands that mend it are listed in order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import workbench
from workbench.activations import HarvestRecipe
from workbench.cli import app
from workbench.dictionaries.recipe import TrainRecipe
from workbench.provenance import Input
from workbench.results.stale import commands, known_results, stale_results, why_stale
from workbench.workspace import Workspace


def _put(ws: Workspace, kind: str, id: str, command: str, *read: tuple[str, str], **recipe: object) -> None:
    inputs = [ws.get(*key).as_input() for key in read]
    with ws.create(kind, id, replace=True, command=command, recipe=recipe, inputs=inputs):
        pass


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """Two dictionaries of one command, records and an evaluation of the first, a comparison, two figures."""
    ws = Workspace(tmp_path / "ws")
    for id in ("a", "b"):
        _put(ws, "dictionaries", id, "workbench train both", sites=["L1R"])
    _put(ws, "latents", "a", "workbench features a", ("dictionaries", "a"))
    _put(ws, "evaluations", "a", "workbench evaluate a", ("dictionaries", "a"))
    _put(ws, "matches", "a__b", "workbench compare a b", ("dictionaries", "a"), ("dictionaries", "b"))
    _put(ws, "exports", "f.1", "workbench export f", ("latents", "a"), figure="f")
    return ws


def _found(ws: Workspace) -> dict[str, tuple[str, ...]]:
    return {f"{s.kind}/{s.id}": s.why for s in stale_results(known_results(ws)).values()}


def test_nothing_is_stale_until_an_input_is_another_one(ws: Workspace) -> None:
    assert _found(ws) == {}
    _put(ws, "dictionaries", "a", "workbench train both", sites=["L1R"], lr=1)
    found = _found(ws)
    assert list(found) == ["latents/a", "evaluations/a", "matches/a__b", "exports/f.1"], "inputs first"
    assert found["latents/a"][0].startswith("dictionaries/a was made again (")
    assert found["exports/f.1"] == ("rests on latents/a, which is stale",)
    assert why_stale(ws, [ws.get("dictionaries", "a"), ws.get("dictionaries", "b")]) == []
    assert len(why_stale(ws, [ws.get("exports", "f.1")])) == 1


def test_the_commands_come_in_order_and_once(ws: Workspace) -> None:
    with ws.create("stores", "s", command="workbench harvest s"):
        pass
    for id in ("a", "b"):  # stores have a seal, here a manifest stands for it
        inputs = [Input(kind="models", id="m", digest="0" * 64)]
        with ws.create(
            "dictionaries", id, replace=True, command="workbench train both", recipe={"x": 1}, inputs=inputs
        ):
            pass
    _put(ws, "models", "m", "workbench pretrain m")
    path = ws.path("models", "m") / "manifest.json"
    files = {n: {"bytes": 1, "sha256": "1" * 64} for n in ("config.json", "step1/model.safetensors")}
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": files}))
    known = known_results(ws)
    listed = commands(known, stale_results(known))
    assert listed[0] == ("workbench train dictionaries/a", ("dictionaries/a", "dictionaries/b"))
    assert [c for c, _ in listed[1:]] == [
        "workbench features a",
        "workbench evaluate a",
        "workbench compare a b",
        "workbench export f",
    ]


def test_a_figure_of_the_new_data_is_the_successor_of_the_old_one(ws: Workspace) -> None:
    _put(ws, "latents", "a", "workbench features a", ("dictionaries", "a"), window=32)
    assert list(_found(ws)) == ["exports/f.1"]
    _put(ws, "exports", "f.2", "workbench export f", ("latents", "a"), figure="f")
    known = known_results(ws)
    stale = stale_results(known)
    assert stale["exports", "f.1"].by == "f.2" and commands(known, stale) == []


def test_info_marks_and_refresh_lists_without_running(ws: Workspace) -> None:
    _put(ws, "dictionaries", "a", "workbench train both", sites=["L1R"], lr=1)
    run = CliRunner()
    document = json.loads(run.invoke(app, ["info", str(ws.root), "--json"]).stdout)
    assert document["latents"][0]["stale"] and "stale" not in document["dictionaries"][0]
    listed = run.invoke(app, ["info", str(ws.root), "--stale"])
    assert listed.exit_code == 0 and "workbench features a --replace" in listed.output
    before = known_results(ws)
    dry = json.loads(run.invoke(app, ["refresh", "-w", str(ws.root), "--json"]).stdout)
    assert dry["ran"] == [] and len(dry["commands"]) == 4 and known_results(ws) == before


def test_captions_and_pages_say_it(ws: Workspace) -> None:
    from workbench_ui.kit.index import read_index

    assert read_index(ws.root).stale == {}
    _put(ws, "dictionaries", "a", "workbench train both", sites=["L1R"], lr=1)
    index = read_index(ws.root)
    assert ("latents", "a") in index.stale and "made again" in index.dictionaries["a"].stale


def test_refresh_runs_what_it_lists(tmp_path: Path) -> None:
    """A dictionary is trained anew under its records: one command makes them again, and then nothing is stale."""
    ws = Workspace(tmp_path / "ws")
    store = {"id": "s", "hooks": ["L0R"], "n_seq": 16, "ctx": 24, "sources": [{"model": "mini-pythia"}]}
    workbench.harvest(ws, HarvestRecipe.model_validate(store))
    train = TrainRecipe(store="s", expansions=(1,), ks=(4,), batch_size=64, tokens=128)
    id = workbench.train(ws, train).id
    workbench.features(ws, id, tokens=200, contexts=2, window=8)
    workbench.train(ws, train.model_copy(update={"data_seed": 1}), replace=True)
    assert list(_found(ws)) == [f"latents/{id}"]
    words = [sys.executable, "-m", "workbench", "refresh", "--yes", "-w", str(ws.root), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    document = json.loads(done.stdout)
    assert done.returncode == 0 and len(document["ran"]) == 1 and document["left"] == [] and _found(ws) == {}
    assert workbench.features(ws, id, tokens=200, contexts=2, window=8).manifest.inputs[0].digest == (
        ws.get("dictionaries", id).digest
    ), "the options of the command that made them are kept"
