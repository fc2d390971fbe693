"""Dry runs: the published settings build on the meta device without a network; small recipes read a real batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae import TopKConfig, Trainer
from sae.errors import MissingError
from tests.workbench.planning.test_planning import small_store
from workbench.analysis.evolution.recipe import EvolveRecipe
from workbench.config import data_dir, read_recipe
from workbench.dictionaries.recipe import TrainRecipe
from workbench.planning.dry_run import (
    dry_evolve,
    dry_harvest,
    dry_train,
    harvest_recipe_of,
    planned_spec,
    training_state,
)
from workbench.workspace import Workspace


def test_planned_documents_are_those_the_harvest_writes(tmp_path):
    store, recipe = small_store(tmp_path)
    assert [(s.source, s.hook, s.at, s.width) for s in planned_spec(recipe).streams] == [
        (s.source, s.hook, s.at, s.width) for s in store.spec.streams
    ]
    assert (
        planned_spec(recipe).row_bytes == store.spec.row_bytes and planned_spec(recipe).n_shards == store.spec.n_shards
    )


def test_training_state_counts_what_a_trainer_holds():
    config = TopKConfig(d_in=32, d_sae=128, k=4)
    trainer = Trainer(config)
    trainer.step(torch.randn(64, 32))
    parameters = list(trainer.model.parameters())
    moments = [t for s in trainer.optimizer.state.values() for t in s.values() if t.ndim]
    real = sum(
        t.numel() * t.element_size()
        for t in [*parameters, *(p.grad for p in parameters), *moments, *trainer.model.buffers()]
    )
    assert training_state(config) == {"parameters": sum(p.numel() for p in parameters), "bytes": real}


def test_small_recipes_read_one_batch(tmp_path):
    _, recipe = small_store(tmp_path)
    ws = Workspace(tmp_path / "ws")
    assert dry_harvest(recipe, ws).batch["shape"] == [recipe.batch_size, recipe.ctx]
    built = dry_train(TrainRecipe(store="s", ks=(4,), batch_size=100), ws)
    assert built.batch["shape"] == [100, 128] and not built.missing
    assert built.objects[0]["object"].endswith("and 1 more like it")
    with pytest.raises(MissingError, match="stores/nothing"):
        dry_train(TrainRecipe(store="nothing"), ws)


FULL = [
    p.stem
    for p in sorted((data_dir() / "recipes").glob("*.toml"))
    if p.stem.startswith(("llama", "universality", "evolution"))
]


@pytest.mark.parametrize("name", [n for n in FULL if "harvest" not in n])
def test_published_settings_build_offline_and_say_what_is_missing(name, tmp_path):
    ws = Workspace(tmp_path / "ws")
    if name.startswith("evolution"):
        built = dry_evolve(read_recipe(EvolveRecipe, name), ws)
        assert "32 sources" in built.objects[-1]["object"]
    else:
        built = dry_train(read_recipe(TrainRecipe, name), ws)
    assert (
        built.batch is None
        and any("workbench harvest" in m for m in built.missing)
        and any("hf download" in m for m in built.missing)
    )
    assert built.objects[-1]["bytes"] > 16 * built.objects[-1]["parameters"] * 0.99


def test_every_published_store_has_a_recipe_of_the_stated_size():
    spec = planned_spec(harvest_recipe_of("evolution-160m"))
    assert len(spec.sources) == 32 and spec.train_rows >= 800_000_000
    assert spec.train_rows * spec.row_bytes == pytest.approx(40e12, rel=0.05)  # the 40 TB of the published setting
    suite = planned_spec(harvest_recipe_of("llama-scope"))
    assert len(suite.streams) == 32 * 4 and suite.train_rows >= 1_600_000_000
    assert np.all([s.width == 4096 for s in suite.streams])
