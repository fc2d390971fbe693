"""Crosscoders whose sources are no snapshots in order, or come from a store: tiny versions of the bundled recipes, end
to end.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from crosscoders import Crosscoder
from sae.errors import ConfigError, MissingError, UsageError
from workbench import evolve
from workbench.activations import ActivationStore
from workbench.analysis.evolution.plan import make_plan
from workbench.analysis.evolution.recipe import EvolveRecipe, companions, evolution_id, resolve_sources
from workbench.analysis.evolution.rows import LastBatches
from workbench.analysis.evolution.snapshots import Snapshots, Source, in_training_order
from workbench.analysis.evolution.train import train_plans
from workbench.config import read_recipe
from workbench.results.evolution import Evolution
from workbench.workspace import Workspace

TINY = {
    "expansion": 1,
    "k": 8,
    "tokens": 6_000,
    "n_seq": 64,
    "batch_size": 256,
    "heldout_seqs": 16,
    "loss_seqs": 8,
    "ngram_seqs": 100,
    "contexts": 1,
    "prompts": 0,
    "permutations": 5,
}


def run(name: str, workspace: Workspace, **more: object) -> tuple[EvolveRecipe, Evolution]:
    recipe = read_recipe(EvolveRecipe, name).model_copy(update=TINY | more)
    return recipe, Evolution.open(evolve(workspace, recipe).path, verify=True)


def test_training_from_a_store_that_is_harvested_first(tmp_path):
    ws = Workspace(tmp_path)
    recipe, done = run("mini-aligned", ws, snapshots=2)
    store = ActivationStore.open(ws.get("stores", "mini-aligned").path)
    assert list(store.sources) == done.sources and len(store) == 64 * 127
    dictionary = ws.get("dictionaries", done.id)
    assert [i.kind for i in dictionary.manifest.inputs] == ["stores"] and dictionary.manifest.inputs[
        0
    ].digest == store.digest
    losses = done.losses.pivot(index="source", columns="metric", values="value").loc[done.sources]
    assert np.isfinite(losses["delta_ce"]).all() and losses["delta_ce"].iloc[-1] > 0.01 and done.diff is None
    assert done.phases["delta_ce"].to_numpy() == pytest.approx(losses["delta_ce"].to_numpy())
    assert len(done.manifest.numbers["delta_loss"]) == 2 and done.manifest.numbers["n_loss_sequences"] == 8
    with pytest.raises(UsageError, match="has no source for step"):
        evolve(ws, recipe.model_copy(update={"id": "other", "snapshots": 3}))


@pytest.mark.parametrize("name", ["mini-diff", "mini-transformer-mamba"])
def test_two_models_are_compared_latent_by_latent(name, tmp_path):
    recipe, done = run(name, Workspace(tmp_path))
    table = done.diff
    assert len(table) == len(done) and set(table["class"]) <= {"shared", "mixed", "first-only", "second-only", "never"}
    assert (
        table["relative_norm"].between(0, 1).all() and np.isfinite(table.loc[table["n_fired"] > 30, "nu_error"]).any()
    )
    assert ("cosine" in table) == (done.cosines(0) is not None) == recipe.common_basis
    numbers = done.manifest.numbers
    assert sum(numbers["classes"].values()) == numbers["n_compared"] > 0
    claims = done.statistics["claim"]
    assert claims.str.contains("are shared").any() and not claims.str.contains("emerge").any(), (
        "no order in time between two models"
    )
    assert done.steps.tolist() == [0, 1]


def test_only_snapshots_of_one_training_are_in_order():
    assert in_training_order(Snapshots(resolve_sources(EvolveRecipe(snapshots=3))))
    a, b = Source("a", "m", "step1", "h", 1), Source("b", "m", "step2", "h", 2)
    assert in_training_order(Snapshots([a, b])) and not in_training_order(Snapshots([b, a]))
    assert not in_training_order(Snapshots([a, Source("c", "other", "step2", "h", 2)]))


def test_a_store_is_read_at_one_site(tmp_path):
    layers = EvolveRecipe(
        store="s",
        sources=({"model": "mini-pythia", "site": "L0R"}, {"model": "mini-pythia", "site": "L1R"}),
        tokens=256,
    )
    with pytest.raises(UsageError, match="serves one of them"):
        evolve(tmp_path, layers)


def test_sites_trained_from_one_pass_come_out_as_if_alone(tmp_path):
    """The models run once for both; two runs, the first of them interrupted after one site was complete, are the same
    too.
    """
    recipe = EvolveRecipe(revisions=("step0", "step9000"), site="L2R", also=("L1R",), seed=3, refit=512, **TINY)
    both = [recipe, *companions(recipe)]
    ids = [evolution_id(r, resolve_sources(r)) for r in both]
    together, apart = Workspace(tmp_path / "a"), Workspace(tmp_path / "b")
    plan = make_plan(recipe)
    assert [plan.id, *(other.id for other in plan.beside)] == ids
    train_plans([plan, *plan.beside], together)
    train_plans(plan.beside, apart)
    assert not apart.complete("dictionaries", ids[0])
    train_plans([plan, *plan.beside], apart)  # one is complete: the other is trained alone
    for id, site in zip(ids, ("L2R", "L1R"), strict=True):
        a, b = (Crosscoder.load(ws.path("dictionaries", id)) for ws in (together, apart))
        assert torch.allclose(a.W_enc, b.W_enc, atol=1e-5) and torch.allclose(a.W_dec, b.W_dec, atol=1e-3)
        assert a.metadata["site"] == site and together.get("dictionaries", id).manifest.metadata["sources"] == [
            "step0",
            "step9000",
        ]


class Counted:
    """Batches [2, 3] that hold their own number."""

    def __init__(self, start: int = 0):
        self.start = start

    def __iter__(self):
        return (torch.full((2, 3), float(i)) for i in itertools.count(self.start))

    def starting_at(self, step: int) -> Counted:
        return Counted(step)


@pytest.mark.parametrize("resumed_at", [0, 5, 8, 10])
def test_the_last_rows_of_a_run_are_the_same_after_an_interruption(resumed_at):
    tail = LastBatches(Counted(), 3)
    for _ in zip(range(resumed_at, 10), tail.starting_at(resumed_at), strict=False):
        pass
    assert [float(x[0, 0]) for x in tail.rows(10)] == [7, 8, 9]


def test_decoders_that_a_penalty_shaped_are_not_fitted_anew(tmp_path):
    recipe = EvolveRecipe(
        revisions=("step0", "step9000"), preset="anthropic-l1", refit=256, tokens=256, n_seq=64, batch_size=256
    )
    with pytest.raises(ConfigError, match="refit = 256 would undo"):
        evolve(tmp_path, recipe)


def test_snapshots_of_two_models_are_followed_side_by_side(tmp_path):
    from workbench.analysis.evolution.recipe import SourceRecipe
    from workbench.exporting import FigureSpec
    from workbench.exporting.figures import build

    steps = ("step0", "step512", "step2560")
    sources = tuple(SourceRecipe(model=m, revisions=steps) for m in ("mini-pythia", "mini-mamba"))
    recipe = EvolveRecipe(id="two", sources=sources, common_basis=False, **TINY | {"loss_seqs": 0})
    done = Evolution.open(evolve(tmp_path, recipe).path, verify=True)
    assert done.steps.tolist() == [0, 512, 2560] * 2 and done.snapshot_names[4] == "mini-mamba, step 512"
    assert done.lines == [("mini-pythia", [0, 1, 2]), ("mini-mamba", [3, 4, 5])]
    assert done.own().shape == done.own("explained").shape == (len(done), 6)
    assert not [c for c in done.table if c.startswith(("emergence", "class", "decay"))], "one order of both is no time"
    assert len(done.architectures) == 2 * len(done) and done.phases["step"].tolist() == done.steps.tolist()
    ws = Workspace(tmp_path)
    curves = build(FigureSpec(figure="evolution_norms", source="evolution/two", options={"latents": [1]}), ws).data
    assert set(curves["latents"]) == {"latent 1, mini-pythia", "latent 1, mini-mamba"} and len(curves) == 6
    phases = build(FigureSpec(figure="evolution_phases", source="evolution/two", options={"quantities": ["ev"]}), ws)
    assert set(phases.data["model"]) == {"mini-pythia", "mini-mamba"}
    with pytest.raises(MissingError, match="follows several models"):
        build(FigureSpec(figure="evolution_emergence", source="evolution/two"), ws)
