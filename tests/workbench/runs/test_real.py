"""The demo on a real model: which layers, which text, how much of it, and that it goes on with what is there."""

from __future__ import annotations

import json

import pytest

from sae.errors import MissingError, UsageError
from workbench.run import QUIET, Run
from workbench.runs import real
from workbench.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "ws")


def _plan(monkeypatch, workspace, *, speed, text=None, run=QUIET):
    monkeypatch.setattr(real, "tokens_per_second", lambda model, recipe: speed)
    return real.plan_demo(workspace, "mini-pythia", text, run)


@pytest.mark.parametrize(("speed", "n_seq"), [(10_000, 2560), (100, 1024)])
def test_a_slow_machine_takes_fewer_tokens_and_says_so(monkeypatch, workspace, speed, n_seq):
    said: list[str] = []
    demo = _plan(monkeypatch, workspace, speed=speed, run=Run(say=said.append))
    assert demo.harvest.n_seq == n_seq
    assert ("fewer are taken" in said[0]) == (n_seq == 1024)


def test_layers_are_a_sixth_half_and_five_sixths(monkeypatch, workspace):
    from workbench.models import load_model

    n = len(load_model("mini-pythia").blocks)
    demo = _plan(monkeypatch, workspace, speed=1e9)
    assert demo.harvest.hooks == tuple(dict.fromkeys([f"L{n // 6}R", f"L{n // 2}R", f"L{n // 2}TC", f"L{n * 5 // 6}R"]))
    assert demo.train.store == demo.harvest.id == "real-mini-pythia" and not demo.harvest_name


def test_the_store_that_is_there_decides(monkeypatch, workspace):
    from workbench.activations import harvest

    recipe = _plan(monkeypatch, workspace, speed=1e9).harvest
    short = recipe.model_copy(update={"n_seq": 20, "ctx": 16, "seqs_per_shard": 20})
    harvest(short, workspace)
    assert _plan(monkeypatch, workspace, speed=1e9).harvest.n_seq == 1024


def test_own_text_is_read_whole_with_documents_held_out(monkeypatch, workspace, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one text " * 40)
    corpus = _plan(monkeypatch, workspace, speed=1e9, text=tmp_path / "texts").harvest.corpus
    assert (corpus.kind, corpus.split, corpus.heldout) == ("text", "all", "documents")
    assert corpus.synthetic_share == 0


def test_the_recipes_give_what_the_demo_promises():
    from workbench.activations import HarvestRecipe
    from workbench.config import read_recipe
    from workbench.dictionaries.recipe import TrainRecipe

    full, short = (read_recipe(HarvestRecipe, n) for n in (real.FULL, real.SHORT))
    assert full.hooks == ("L5R", "L15R", "L15TC", "L25R") and full.n_seq * (full.ctx - 1) >= 300_000
    assert full.content() | {"n_seq": 0} == short.content() | {"n_seq": 0}
    train = read_recipe(TrainRecipe, real.TRAIN)
    assert train.sites == full.hooks and train.expansions[0] * 576 >= 4608 and train.ks == (32,)


def test_what_is_left_is_said_from_the_pace_of_what_ran(monkeypatch, workspace):
    clock = iter([0, 100, 100, 150, 150, 151])
    monkeypatch.setattr(real.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(real, "plan_demo", lambda *a: None)
    three = [real._Step(t, s, lambda run: ["x"]) for t, s in (("a", 0.5), ("b", 0.25), ("c", 0.25))]
    monkeypatch.setattr(real, "steps", lambda *a: three)
    said: list[str] = []
    made = real.run_real_demo(workspace, "m", None, Run(say=said.append))
    assert "left" not in said[0] and "about 2 min left" in said[1] and "about 1 min left" in said[2]
    assert [v["seconds"] for v in made.values()] == [100, 50, 1]


def test_what_a_model_is_refused_is_left_out_and_said(workspace):
    def refuse():
        raise UsageError("circuits are analysed for attention")

    said: list[str] = []
    assert real._unless_refused(Run(say=said.append), refuse) == [] and said == [
        "left out: circuits are analysed for attention"
    ]


def test_wrong_input_is_one_line(workspace, tmp_path):
    from typer.testing import CliRunner

    from workbench.cli import app

    with pytest.raises(MissingError, match="nowhere"):
        real.plan_demo(workspace, str(tmp_path / "nowhere"), None, QUIET)
    result = CliRunner().invoke(app, ["demo", "--no-ui", "--text", str(tmp_path), "-w", str(tmp_path / "w")])
    assert result.exit_code == UsageError.exit_code and "--model" in result.output


@pytest.mark.slow
def test_the_whole_demo_on_a_model_of_ones_own(workspace, tmp_path):
    from typer.testing import CliRunner

    from workbench.cli import app

    command = ["demo", "--model", "mini-pythia", "--no-ui", "--json", "-w", str(workspace.root)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    steps = json.loads(first.stdout)["steps"]
    assert len(steps["dictionaries"]["ids"]) >= 3 and all(s["ids"] for s in steps.values())
    again = CliRunner().invoke(app, command)
    assert json.loads(again.stdout)["steps"].keys() == steps.keys()
