"""Warm starts keep what the last snapshot's dictionary knew, and the gap to it is measured on the same rows."""

from __future__ import annotations

import itertools

import pytest
import torch

import sae
from crosscoders import Crosscoder, CrosscoderConfig, evaluate_sources
from sae.refitting import refit
from tests.crosscoders.worlds import World
from workbench import evolve
from workbench.analysis.evolution.baselines import WarmTopKConfig, alone_config, measure_gaps
from workbench.analysis.evolution.recipe import EvolveRecipe, resolve_sources
from workbench.analysis.evolution.snapshots import OnlineBatches, Snapshots
from workbench.analysis.evolution.train import crosscoder_config
from workbench.corpus import plan_tokens
from workbench.models import load_tokenizer
from workbench.results.evolution import Evolution
from workbench.workspace import Workspace


@pytest.fixture(scope="module")
def world() -> World:
    return World([16, 16], torch.ones(2, 30), scales=[1.0, 3.0], aligned=True)


def trained(config, rows, steps: int):
    trainer = sae.Trainer(config, total_steps=steps)
    for _ in range(steps):
        trainer.step(rows())
    return trainer


def test_a_warm_start_begins_where_the_last_snapshot_ended(world, tmp_path):
    trainer = trained(WarmTopKConfig(d_in=16, d_sae=40, k=3, lr=4e-3), lambda: world.batch(128)[0][:, :16], 200)
    first = trainer.dictionary()
    start = {"start": str(first.save(tmp_path / "first")), "start_scale": float(trainer.model.scale_D[0])}
    known = sae.evaluate(first, [world.batch(1000)[0][:, :16]]).ev
    grown = lambda: world.batch(128)[0][:, 16:]  # noqa: E731  # the same latents, three times as large
    cold = sae.Trainer(WarmTopKConfig(d_in=16, d_sae=40, k=3)).step(grown()).ev
    warm = sae.Trainer(WarmTopKConfig(d_in=16, d_sae=40, k=3, **start)).step(grown()).ev
    assert known > 0.8 and warm > known - 0.08 and warm > cold + 0.2
    after = trained(WarmTopKConfig(d_in=16, d_sae=40, k=3, lr=1e-4, **start), grown, 20).dictionary()
    cosine = torch.nn.functional.cosine_similarity(first.W_dec, after.W_dec)
    assert cosine.median() > 0.99, "latent i is the descendant of latent i"


def test_the_gap_is_measured_on_the_same_rows(world):
    cc = trained(
        CrosscoderConfig(widths=[16, 16], d_sae=40, k=3, lr=4e-3), lambda: world.batch(128)[0], 200
    ).dictionary()
    saes = [
        trained(
            sae.TopKConfig(d_in=16, d_sae=40, k=3, lr=4e-3), lambda s=s: world.batch(128)[0].split(16, 1)[s], 200
        ).dictionary()
        for s in range(2)
    ]
    rows = world.batch(3000)[0]
    rows = rows[rows[:, 0].argsort()]  # batches with means of their own: the variance is that around the mean of all
    found = measure_gaps(cc, saes, ["a", "b"], rows.split(200))
    t = found.table
    want = evaluate_sources(cc, [rows])
    assert t["ev_crosscoder"].tolist() == pytest.approx(list(want.ev_S), abs=1e-4)
    assert t["ev_sae"][1] == pytest.approx(sae.evaluate(saes[1], [rows[:, 16:]]).ev, abs=1e-4)
    assert (
        (t["low"] <= t["gap"]).all()
        and (t["gap"] <= t["high"]).all()
        and t["n"].eq(15).all()
        and t["rows"].eq(3000).all()
    )
    assert t["gap"].abs().max() < 0.2
    late = found.mean(slice(1, 2))
    assert (
        late.value == pytest.approx(t["gap"][1])
        and late.low == pytest.approx(t["low"][1])
        and late.high == pytest.approx(t["high"][1])
    )


def test_the_sae_beside_a_crosscoder_has_its_sizes_and_preset():
    recipe = EvolveRecipe(preset="few-steps", expansion=4, k=8, seed=3)
    crosscoder, alone = crosscoder_config(recipe, resolve_sources(recipe)[:2], [128, 128]), alone_config(recipe, 128)
    assert (
        (alone.d_in, alone.d_sae, alone.k, alone.seed)
        == (128, crosscoder.d_sae, crosscoder.k, crosscoder.seed)
        == (128, 512, 8, 3)
    )
    assert alone.beta2 == crosscoder.beta2 == 0.95 and alone.dead_after == crosscoder.dead_after
    assert alone_config(recipe.model_copy(update={"preset": ""}), 128).beta2 != 0.95
    own = recipe.model_copy(update={"crosscoder": {"lr": 0.5, "details": {"bias_rate": 0.2}}})
    told = crosscoder_config(own, resolve_sources(recipe)[:2], [128, 128])
    assert (
        told.lr == 0.5
        and told.details.bias_rate == 0.2
        and told.details.encoder_rate == crosscoder.details.encoder_rate
    )


def rows_of_the_run(recipe: EvolveRecipe) -> list[torch.Tensor]:
    """The batches a recipe trains on, as the tail of a run remembers them."""
    sources = resolve_sources(recipe)
    tokens = plan_tokens(recipe.corpus, load_tokenizer(recipe.model), n_seq=recipe.n_seq, ctx=recipe.ctx).tokens
    batches = OnlineBatches(Snapshots(sources), tokens, recipe.batch_size, seed=recipe.seed, group=64)
    return [x.half().float() for x in itertools.islice(batches, recipe.steps)]


def test_a_recipe_with_baselines_measures_both_of_them(tmp_path):
    """``alone`` sees what the crosscoder sees, as often; ``warm`` starts from the snapshot before; the claim is about
    the first.
    """
    sizes = {
        "expansion": 1,
        "k": 8,
        "tokens": 6_000,
        "n_seq": 64,
        "batch_size": 256,
        "heldout_seqs": 16,
        "loss_seqs": 0,
        "ngram_seqs": 100,
    }
    recipe = EvolveRecipe(
        revisions=("step0", "step1664", "step9000"),
        baseline=True,
        prompts=0,
        contexts=0,
        permutations=5,
        refit=2_000,
        **sizes,
    )
    ws = Workspace(tmp_path)
    done = Evolution.open(evolve(ws, recipe).path)
    table = done.baseline
    assert table["baseline"].tolist() == ["alone"] * 3 + ["warm"] * 3 and table["source"].tolist() == done.sources * 2
    assert (table["l0_sae"] == 8).all() and (table["l0_crosscoder"] <= 8).all()
    made = {
        i.id: ws.get("dictionaries", i.id).manifest
        for i in done.manifest.inputs
        if i.kind == "dictionaries" and i.id != done.id
    }
    assert len(made) == 6 and all(m.numbers["steps"] == recipe.steps for m in made.values())
    warm = [m for id, m in made.items() if id.endswith(".warm")]
    assert [m.metadata["warm_start"] is None for m in warm] == [True, False, False]
    assert all(m.metadata["warm_start"] is None for id, m in made.items() if id.endswith(".alone"))
    cc, tail = Crosscoder.load(ws.path("dictionaries", done.id)), rows_of_the_run(recipe)[-8:]
    assert cc.metadata["refit"] == 2_000 and torch.allclose(refit(cc, tail).W_dec, cc.W_dec, atol=1e-3), (
        "fitted to its last eight batches"
    )
    assert not torch.allclose(refit(cc, rows_of_the_run(recipe)[:8]).W_dec, cc.W_dec, atol=1e-3)
    row = done.statistics[done.statistics["claim"].str.contains("one SAE per snapshot")].iloc[0]
    alone = table[table["baseline"] == "alone"]
    assert row["value"] == pytest.approx(alone["gap"].mean()) and row["low"] < row["value"] < row["high"]
