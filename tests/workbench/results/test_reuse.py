"""One rule for every verb: a result is reused where recipe, inputs and schema of its numbers are those asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench
from sae.errors import MismatchError
from workbench import Run, provenance
from workbench.activations import HarvestRecipe, harvest
from workbench.analysis.evolution.plan import make_plan
from workbench.analysis.evolution.recipe import EvolveRecipe
from workbench.claims import all_claims
from workbench.claims.lab import Lab
from workbench.claims.run import recipe_of
from workbench.corpus import TokenPlan
from workbench.dictionaries.recipe import TrainRecipe
from workbench.exporting.spec import FigureSpec
from workbench.models.pretrain import PretrainRecipe
from workbench.models.pretrained import trained_model
from workbench.workspace import Item, Workspace

MODEL, ONE, TWO = "mini-pythia", "mini-pythia.L1R-1x", "mini-mamba.L1R-1x"
STORE = HarvestRecipe.model_validate(
    {"id": "small", "hooks": ["L1R"], "n_seq": 48, "ctx": 24, "sources": [{"model": MODEL}, {"model": "mini-mamba"}]}
)
TRAIN = TrainRecipe(store="small", expansions=(1,), ks=(4,), batch_size=128, tokens=128 * 4)
EVOLVE = EvolveRecipe(id="followed", revisions=("step0", "step512"), tokens=2048, n_seq=64, ctx=32, expansion=1)
PRETRAIN = PretrainRecipe(name="tiny", architecture="gpt_neox", steps=4)
CLAIM = next(iter(all_claims())).id
FIGURE = FigureSpec(figure="suite_summary", source="stores/small")


def _plan(seed: int = 0) -> TokenPlan:
    tokens = np.random.default_rng(seed).integers(1, 500, (48, 24)).astype(np.int32)
    tokens[:, 0] = 0
    return TokenPlan(tokens, np.arange(48, dtype=np.int32), np.zeros(48, np.uint8), {"made": f"random {seed}"})


def _features(ws: Workspace, **more: Any) -> Item:
    return workbench.features(ws, ONE, **{"tokens": 500, "contexts": 2, "window": 8} | more)


def _evaluate(ws: Workspace, **more: Any) -> Item:
    return workbench.evaluate(ws, ONE, **{"sequences": 2} | more)


def _explain(ws: Workspace, **more: Any) -> Item:
    return workbench.explain(ws, ONE, **{"tokens": 500} | more)


def _compare(ws: Workspace, **more: Any) -> Item:
    return workbench.compare(ws, (ONE, TWO), **{"tokens": 500, "min_firings": 2, "baselines": "none"} | more)


def _circuits(ws: Workspace, **more: Any) -> Item:
    return workbench.circuits(ws, MODEL, **{"prompts": 2, "length": 9, "control": "none"} | more)


def _map(ws: Workspace, **more: Any) -> Item:
    return workbench.map(ws, ONE, **{"layout": False} | more)


def _import(ws: Workspace, **more: Any) -> Item:
    return workbench.import_dictionary(ws, str(ws.root.parent / "theirs"), **{"id": "foreign", "model": MODEL} | more)


def _train(ws: Workspace, *, run: Run | None = None, replace: bool = False, **more: Any) -> Item:
    return workbench.train(ws, TRAIN.model_copy(update=more), run=run, replace=replace)


def _harvest(ws: Workspace, *, run: Run | None = None, workers: int | None = None, **more: Any) -> Item:
    return workbench.harvest(ws, STORE.model_copy(update=more), run=run, workers=workers)


def _evolve(ws: Workspace, *, run: Run | None = None, **more: Any) -> Item:
    return workbench.evolve(ws, EVOLVE.model_copy(update=more), run=run)


def _reproduce(ws: Workspace, **more: Any) -> Item:
    return workbench.reproduce(ws, **{"only": CLAIM, "quick": True, "seeds": 1} | more)


def _pretrain(ws: Workspace, *, run: Run | None = None, **more: Any) -> Item | None:
    return trained_model(PRETRAIN.model_copy(update=more), ws, run=run or Run())


def _export(ws: Workspace, **more: Any) -> Item:
    return workbench.export(ws, FIGURE, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One small result of every verb. Those that take minutes (an evolution, a claim, a model) are written by hand with
    the manifest the verb writes.
    """
    ws = Workspace(tmp_path_factory.mktemp("reuse") / "ws")
    harvest(STORE, ws, plan=_plan())
    _train(ws, seeds=(0,))
    shutil.copytree(ws.path("dictionaries", ONE), ws.root.parent / "theirs")
    for make in (_features, _evaluate, _explain, _compare, _circuits, _map, _import, _export):
        make(ws)
    plan = make_plan(EVOLVE)
    names = {"sources": [s.name for s in plan.sources]}
    recipe = EVOLVE.model_dump(mode="json")
    with ws.create("dictionaries", plan.id, recipe=recipe, inputs=plan.read, metadata=names) as f:
        (f / "cfg.json").write_text(json.dumps({"metadata": {"kind": "crosscoder"}}))
    read = [ws.get("dictionaries", plan.id).as_input(), *plan.read]
    with ws.create("evolution", plan.id, recipe=recipe, inputs=read, metadata=names):
        pass
    claim = next(c for c in all_claims() if c.id == CLAIM)
    with ws.create(
        "claims", CLAIM, recipe=recipe_of(claim, Lab(ws, seeds=1, quick=True)), numbers={"verdict": "x"}
    ) as f:
        (f / "finding.json").write_text(json.dumps({"claim": CLAIM}))
    with ws.create("models", PRETRAIN.name, recipe=PRETRAIN.model_dump(mode="json")):
        pass
    return ws


@pytest.fixture
def ws(made: Workspace, tmp_path: Path) -> Workspace:
    """A copy to spoil."""
    shutil.copytree(made.root.parent, tmp_path / "all")
    return Workspace(tmp_path / "all" / "ws")


# verb: (a call of it, an option that changes the result, what the refusal must say)
CHANGED: dict[str, tuple[Callable[..., Item | None], dict[str, Any], str]] = {
    "harvest": (_harvest, {"dtype": "bfloat16"}, "dtype: float32 there, bfloat16 asked"),
    "train": (_train, {"ks": (8,)}, "sae.k: 4 there, 8 asked"),
    "train, rate": (
        _train,
        {"sae": {"lr": 5e-4}},
        r"bias_rate: 0\.1 there, 1\.0 asked.*sae.lr: 0\.01 there, 0\.0005 asked",
    ),
    "train, activation": (_train, {"sae": {"activation": "batchtopk"}}, "sae.activation.*topk.*batchtopk"),
    "train, tokens": (_train, {"tokens": 128 * 8}, "tokens: 512 there, 1024 asked"),
    "train, order": (_train, {"data_seed": 3}, "data_seed: 0 there, 3 asked"),
    "train, batch": (_train, {"batch_size": 64}, "batch_size: 128 there, 64 asked"),
    "features": (_features, {"contexts": 3}, "contexts: 2 there, 3 asked"),
    "evaluate": (_evaluate, {"sequences": 3}, "sequences: 2 there, 3 asked"),
    "explain": (_explain, {"min_f1": 0.6}, "min_f1: 0.5 there, 0.6 asked"),
    "compare": (_compare, {"min_firings": 3}, "min_firings: 2 there, 3 asked"),
    "circuits": (_circuits, {"prompts": 3}, "prompts: 2 there, 3 asked"),
    "map": (_map, {"seed": 1}, "seed: 0 there, 1 asked"),
    "import": (_import, {"model": "mini-mamba"}, "model: mini-pythia there, mini-mamba asked"),
    "evolve": (_evolve, {"k": 8}, "k: 16 there, 8 asked"),
    "reproduce": (_reproduce, {"seeds": 2}, "seeds: 1 there, 2 asked"),
    "pretrain": (_pretrain, {"lr": 1e-3}, "lr: 0.002 there, 0.001 asked"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_key_is_refused_by_name(made: Workspace, name: str) -> None:
    call, change, says = CHANGED[name]
    with pytest.raises(MismatchError, match=says) as refused:
        call(made, **change)
    assert "--replace" in str(refused.value) and refused.value.exit_code == 1


@pytest.mark.parametrize("name", [*(n for n in CHANGED if "," not in n), "export"])
def test_the_same_request_is_reused(made: Workspace, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = _export if name == "export" else CHANGED[name][0]
    monkeypatch.setattr(Workspace, "create", lambda *a, **k: pytest.fail("made again"))
    said: list[str] = []
    item = call(made, run=Run(say=said.append))
    assert item is not None and (name == "reproduce" or any("reused" in line for line in said))


def _touch(ws: Workspace, kind: str, id: str) -> None:
    """Another result under the same id, as far as anybody can tell who was made from it."""
    path = ws.path(kind, id) / ("seal.json" if kind == "stores" else "manifest.json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"command": "workbench made again"}))


INPUT: dict[str, tuple[Callable[..., Item | None], str, str]] = {
    "train": (_train, "stores", "small"),
    "features": (_features, "dictionaries", ONE),
    "features, rows": (_features, "stores", "small"),
    "evaluate": (_evaluate, "dictionaries", ONE),
    "evaluate, text": (_evaluate, "stores", "small"),
    "explain": (_explain, "dictionaries", ONE),
    "compare": (_compare, "dictionaries", TWO),
    "map": (_map, "dictionaries", ONE),
    "evolve": (_evolve, "dictionaries", "followed"),
}


@pytest.mark.parametrize("name", INPUT)
def test_a_changed_input_is_refused_by_name(ws: Workspace, name: str) -> None:
    call, kind, id = INPUT[name]
    _touch(ws, kind, id)
    with pytest.raises(MismatchError, match=rf"{kind}/{id}: version [0-9a-f]{{8}} there, version [0-9a-f]{{8}} asked"):
        call(ws)


@pytest.mark.parametrize("call", [_evaluate, _features, _circuits, _evolve, _harvest], ids=lambda f: f.__name__)
def test_changed_weights_are_refused(
    made: Workspace, call: Callable[..., Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.models.weights.weights_of_files", lambda name, revision: "0" * 64)
    monkeypatch.setattr("workbench.analysis.circuits.run.weights_digest", lambda model: "0" * 64)
    with pytest.raises(MismatchError, match=r"models/mini-pythia|weights of mini-pythia"):
        call(made)


def test_other_files_other_texts_other_stores(ws: Workspace, tmp_path: Path) -> None:
    """Inputs that lie outside the workspace, and another store under the name of the recipe."""
    theirs = ws.root.parent / "theirs" / "cfg.json"
    theirs.write_text(theirs.read_text() + " ")
    with pytest.raises(MismatchError, match="imported/theirs: version"):
        _import(ws)
    text = tmp_path / "text.txt"
    text.write_text("for i in range(10): print(i)\n" * 200)
    _evaluate(ws, corpus=str(text))
    _evaluate(ws, corpus=str(text))
    text.write_text("while True: pass\n" * 400)
    with pytest.raises(MismatchError, match=r"texts/text\.txt: version"):
        _evaluate(ws, corpus=str(text))
    harvest(STORE.model_copy(update={"id": "other"}), ws, plan=_plan(1))
    with pytest.raises(MismatchError, match="stores: small there, other asked"):
        _train(ws, store="other")


def test_workers_and_the_programs_version_block_nothing(ws: Workspace) -> None:
    before = ws.get("stores", "small").digest
    assert _harvest(ws, workers=2).digest == before and _reproduce(ws, workers=2).id == CLAIM
    path = ws.path("evaluations", ONE) / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"code": values["code"] | {"version": "0.0.9"}}))
    said: list[str] = []
    _evaluate(ws, run=Run(say=said.append))
    assert said == [f"{ONE}: complete, made by version 0.0.9, reused"]


def test_a_new_schema_of_numbers_is_a_difference(made: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(provenance.NUMBERS, "evaluations", 2)
    with pytest.raises(MismatchError, match=r"numbers: schema 1 of version .* there, schema 2 asked"):
        _evaluate(made)


def test_a_manifest_of_an_older_version_is_compared_on_what_it_holds(ws: Workspace) -> None:
    path = ws.path("evaluations", ONE) / "manifest.json"
    values = json.loads(path.read_text())
    values["inputs"] = [i for i in values["inputs"] if i["kind"] == "dictionaries"]
    values["code"].pop("numbers")
    path.write_text(json.dumps(values))
    assert _evaluate(ws).manifest.code.get("numbers") is None
    with pytest.raises(MismatchError, match="sequences: 2 there, 3 asked"):
        _evaluate(ws, sequences=3)


def test_replace_keeps_the_old_until_the_new_is_whole(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ws.get("evaluations", ONE).digest
    with monkeypatch.context() as m:
        m.setattr("workbench.analysis.evaluation.run.np.save", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            _evaluate(ws, sequences=3, replace=True)
    assert ws.get("evaluations", ONE).digest == before
    item = _evaluate(ws, sequences=3, replace=True)
    assert item.digest != before and item.manifest.recipe["sequences"] == 3
    assert "--replace" not in item.manifest.command
    assert _evaluate(ws, sequences=3).digest == item.digest


def test_a_figure_of_something_else_has_another_id_and_one_of_stale_results_says_so(ws: Workspace) -> None:
    """Its id is made from spec and inputs, so nothing stands in the way."""
    first = _export(ws)
    assert _export(ws).digest == first.digest
    _touch(ws, "dictionaries", ONE)
    again = _export(ws)
    assert again.id == first.id and "Stale: " in (again.path / "caption.txt").read_text()
    assert f"evaluations/{ONE}: dictionaries/{ONE} was made again" in (again.path / "provenance.json").read_text()
    _touch(ws, "evaluations", ONE)
    assert _export(ws).id != first.id and ws.complete("exports", first.id)
