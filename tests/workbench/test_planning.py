"""Plans count what the commands then make."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from sae.errors import ConfigError, UsageError
from workbench.activations import ActivationStore, HarvestRecipe, harvest
from workbench.cli import app
from workbench.corpus import TokenPlan
from workbench.planning import MACHINES, Machine, Part, Plan, kind_of, machine_named, plan_harvest, plan_recipe, plan_training
from workbench.training import TrainRecipe, jobs_of
from workbench.workspace import Workspace


def test_a_part_takes_its_slowest_traffic():
    machine = Machine("m", flops=100, memory_bandwidth=10, disk_bandwidth=1, memory=1000)
    assert Part("p", flops=100, memory_bytes=20, disk_bytes=1).seconds(machine) == (2.0, "memory bandwidth")
    plan = Plan("train", {"flops": 1}, disk_bytes=1, memory_bytes=1001, parts=[Part("a", flops=300), Part("b", disk_bytes=1)])
    said = plan.on(machine)
    assert said["seconds"] == 4.0 and said["binding"] == "memory size" and not said["fits_in_memory"]


def test_harvest_and_training_match_what_is_made(tmp_path):
    ws = Workspace(tmp_path / "ws")
    values = {"id": "s", "hooks": ["L0R", "L1R"], "n_seq": 32, "ctx": 64, "seqs_per_shard": 8, "sources": [{"model": "mini-pythia"}]}
    recipe = HarvestRecipe.model_validate(values)
    tokens = np.random.default_rng(0).integers(1, 500, (32, 64)).astype(np.int32)
    tokens[:, 0] = 0
    harvest(recipe, ws, plan=TokenPlan(tokens, np.arange(32, dtype=np.int32), np.zeros(32, np.uint8), {}))
    store = ActivationStore.open(ws.path("stores", "s"))
    width = store.width("L0R") if "L0R" in store.hooks else store.width(store.hooks[0])
    plan = plan_harvest(recipe, [(100, [width, width])])
    on_disk = sum(p.stat().st_size for p in (ws.path("stores", "s") / "shards").iterdir())
    assert plan.amounts["rows"] == len(store) and plan.amounts["shards"] == 4
    assert plan.disk_bytes == pytest.approx(on_disk, rel=0.1)

    training = TrainRecipe(store="s", expansions=(2, 4), ks=(4,), batch_size=100, tokens=1050)
    jobs = jobs_of(training, store)
    planned = plan_training(training, jobs, 4, width * 4)
    assert planned.amounts["steps"] == 11 and planned.amounts["dictionaries"] == 4
    assert planned.amounts["flops"] == 2 * 1100 * width * (2 * width + 4 * width) * 2


def test_recipes_are_told_apart_and_bad_requests_named(tmp_path):
    assert kind_of({"architecture": "mamba"}, "x") == "pretrain"
    with pytest.raises(ConfigError, match="x is neither"):
        kind_of({"foo": 1}, "x")
    with pytest.raises(UsageError, match="'h100'"):
        machine_named("h10")
    assert plan_recipe("mini-pythia", Workspace(tmp_path / "ws")).amounts["snapshots"] >= 14
    said = CliRunner().invoke(app, ["plan", "mini-pythia", "--machine", "h200", "-w", str(tmp_path / "ws"), "--json"])
    assert said.exit_code == 0 and json.loads(said.stdout)["machine"] == "h200" and "h200" in MACHINES
