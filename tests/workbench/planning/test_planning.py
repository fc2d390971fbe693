"""Plans count what the commands then make, and every recipe that ships can be planned without a network."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from sae.errors import ConfigError, UsageError
from workbench.activations import ActivationStore, HarvestRecipe, harvest
from workbench.cli import app
from workbench.config import data_dir
from workbench.corpus import TokenPlan
from workbench.models.facts import model_facts
from workbench.planning import (
    Dictionary,
    Layout,
    Machine,
    Part,
    Plan,
    Reading,
    kind_of,
    machine_named,
    machines,
    plan_recipe,
    plan_training,
    planned_recipe,
    this_machine,
)
from workbench.planning.calibrate import solved
from workbench.planning.recipes import buffers
from workbench.planning.sweep import as_markdown, counts, draw, layouts, sweep
from workbench.workspace import Workspace

SIMPLE = Machine(
    name="m",
    memory=1000,
    bfloat16=100,
    float32=100,
    stream=10,
    gather=5,
    disk_write=1,
    disk_read=2,
    within=8,
    between=4,
    resident=0,
)


def small_store(tmp_path) -> tuple[ActivationStore, HarvestRecipe]:
    """A store of two sites of mini-pythia on random tokens in ``tmp_path/ws``, and its recipe."""
    ws = Workspace(tmp_path / "ws")
    values = {
        "id": "s",
        "hooks": ["L0R", "L1R"],
        "n_seq": 32,
        "ctx": 64,
        "seqs_per_shard": 8,
        "sources": [{"model": "mini-pythia"}],
    }
    recipe = HarvestRecipe.model_validate(values)
    tokens = np.random.default_rng(0).integers(1, 500, (32, 64)).astype(np.int32)
    tokens[:, 0] = 0
    harvest(recipe, ws, plan=TokenPlan(tokens, np.arange(32, dtype=np.int32), np.zeros(32, np.uint8), {}))
    return ActivationStore.open(ws.path("stores", "s")), recipe


def test_a_part_takes_its_slowest_resource_and_a_plan_the_sum():
    assert Part("p", {"float32": 100, "stream": 20, "disk_read": 1}).seconds(SIMPLE) == (2.0, "memory bandwidth")
    assert Part("n", sent=16, collectives=2, group=1).seconds(SIMPLE) == (2.0 + 2e-4, "communication")
    assert Part("n", sent=16, group=2).seconds(SIMPLE)[0] == 4.0
    assert Part("d", {"disk_read": 2}).seconds(SIMPLE.model_copy(update={"devices_per_node": 4}), devices=16) == (
        4.0,
        "disk",
    )
    shared = SIMPLE.model_copy(update={"devices_per_node": 4})
    assert Part("checkpoints", {"disk_write": 2}, one_of=2).seconds(shared, devices=16)[0] == 4.0, (
        "two leaders of a node share its disk"
    )
    assert Part("checkpoints", {"disk_write": 2}, one_of=16).seconds(shared, devices=16)[0] == 2.0, (
        "one leader has it alone"
    )
    assert Part("calls", {"steps": 100}).seconds(SIMPLE) == (0.0, "calls")
    assert Part("calls", {"steps": 100}).seconds(SIMPLE.model_copy(update={"step": 0.01}))[0] == pytest.approx(1.0)
    plan = Plan("train", {"flops": 1}, 1, {"weights": 1001}, [Part("a", {"float32": 300}), Part("b", {"disk_read": 2})])
    said = plan.on(SIMPLE)
    assert said["seconds"] == 4.0 and said["binding"] == "memory size" and not said["fits_in_memory"]


def test_harvest_and_training_match_what_is_made(tmp_path):
    store, _ = small_store(tmp_path)
    (tmp_path / "h.toml").write_text(
        'id="s"\nhooks=["L0R","L1R"]\nn_seq=32\nctx=64\nseqs_per_shard=8\n[[sources]]\nmodel="mini-pythia"\n'
    )
    (tmp_path / "t.toml").write_text('store="s"\nexpansions=[2,4]\nks=[4]\nbatch_size=100\ntokens=1050\n')
    ws = Workspace(tmp_path / "ws")
    plan = plan_recipe(str(tmp_path / "h.toml"), ws)
    on_disk = sum(p.stat().st_size for p in (ws.path("stores", "s")).rglob("*") if p.is_file())
    assert plan.amounts["rows"] == len(store) and plan.amounts["shards"] == 4
    assert plan.disk_bytes == pytest.approx(on_disk, rel=0.1)
    counted = {p.name: p.amounts for p in plan.parts}
    assert counted["loading models"] == {"loads": 1.0} and counted["making them durable"] == {"shards": 5.0}, (
        "four shards and the token plan"
    )
    made = plan_recipe(str(tmp_path / "t.toml"), ws)
    assert made.amounts["steps"] == 11 and made.amounts["dictionaries"] == 4 and made.amounts["passes"] == 2
    assert made.amounts["flops"] == 2 * 1100 * 128 * (2 * 128 + 4 * 128) * 2


def test_a_harvest_is_timed_with_its_own_models_threads_and_shards(tmp_path, monkeypatch):
    """Two threads make a model of a harvest that runs on one look faster than it is; a large batch takes longer per
    token than a small one.
    """
    import torch

    from workbench.activations.harvesting import forward
    from workbench.planning import calibrate, measured_here

    (tmp_path / "h.toml").write_text(
        'id="s"\nhooks=["L0R"]\nn_seq=64\nctx=32\nbatch_size=16\n[[sources]]\nmodel="mini-pythia"\n'
    )
    seen, capture, threads = [], forward.capture, torch.get_num_threads()
    monkeypatch.setattr(
        forward, "capture", lambda m, t, h: seen.append((torch.get_num_threads(), tuple(t.shape))) or capture(m, t, h)
    )
    monkeypatch.setattr(calibrate, "memory", lambda kind: {"resident": 1.0})
    ws = Workspace(tmp_path / "ws")
    here = measured_here(planned_recipe(str(tmp_path / "h.toml"), ws), ws)
    assert set(seen) == {(1, (16, 32))} and torch.get_num_threads() == threads
    assert here.forward > 0 and 0 < here.load < 10 and 0 < here.shard < 1 and here.disk_write > 1e6
    plan = plan_recipe(str(tmp_path / "h.toml"), ws)
    slow = here.model_copy(update={"load": here.load + 1, "shard": here.shard + 1})
    assert plan.on(slow)["seconds"] - plan.on(here)["seconds"] == pytest.approx(1 + 2), (
        "one model; one shard and the token plan"
    )


def test_a_store_of_any_size_is_tried_with_little(tmp_path):
    """A sequence of Llama-3.1-8B's whole suite is 1.1 GB: what is written to learn the rate is not."""
    from workbench.config import read_recipe
    from workbench.planning.calibrate import _tried, _writing
    from workbench.planning.dry_run import planned_spec

    spec = planned_spec(read_recipe(HarvestRecipe, "llama-scope-harvest"))
    tried = _tried(spec)
    size = sum(s.width for s in tried.streams) * tried.rows_per_seq * tried.itemsize * tried.batch_size
    assert size <= 2**23 < sum(s.width for s in spec.streams) * spec.rows_per_seq * spec.itemsize
    rates = _writing(tmp_path, spec)
    assert rates["disk_write"] > 1e6 and 0 < rates["shard"] < 5 and not list(tmp_path.iterdir())


def test_layouts_deal_the_work_and_pay_for_what_they_send():
    two = [Dictionary(64, 4096, 16)] * 2
    plans = {
        name: plan_training(two, steps=100, batch_size=512, reading=Reading(), layout=layout, checkpoints=0)
        for name, layout in {
            "one": Layout(),
            "jobs": Layout(jobs=2),
            "data": Layout(data=2),
            "latents": Layout(latents=2),
        }.items()
    }
    amount = {n: sum(p.amounts.get("float32", 0) for p in plan.parts) for n, plan in plans.items()}
    assert amount["jobs"] == amount["data"] == amount["latents"] == amount["one"] / 2
    assert plans["one"].sent_per_step == plans["jobs"].sent_per_step == 0
    assert plans["data"].sent_per_step == pytest.approx(two[0].parameters * 4)  # a ring of two sends each gradient once
    assert plans["latents"].sent_per_step == pytest.approx(512 * (16 * 4 + 64 * 4))
    assert plans["latents"].memory["weights"] == plans["data"].memory["weights"] / 2
    adam = {n: next(p.amounts["adam"] for p in plan.parts if p.name == "Adam") for n, plan in plans.items()}
    assert adam["data"] == adam["one"] and adam["latents"] == adam["one"] / 2


def test_every_step_pays_its_fixed_time_once_for_each_dictionary():
    two = [Dictionary(64, 4096, 16)] * 2
    for layout, steps in {Layout(): 200, Layout(jobs=2): 100, Layout(data=2): 200, Layout(latents=2): 200}.items():
        plan = plan_training(two, steps=100, batch_size=512, reading=Reading(), layout=layout)
        assert next(p.amounts["steps"] for p in plan.parts if p.name == "calls") == steps
        written = next(p for p in plan.parts if p.name == "checkpoints")
        assert written.one_of == layout.data * layout.latents
        assert next(p.amounts["commits"] for p in plan.parts if p.name == "making them durable") == 11 * 2 / layout.jobs
        assert written.amounts["disk_save"] == 31 * 2 * two[0].parameters * 4 / layout.jobs, (
            "a leader writes all of its dictionaries"
        )


def test_a_plan_asks_the_readers_for_their_buffers_and_counts_every_model_that_stays(tmp_path):
    store, _ = small_store(tmp_path)
    assert (
        buffers(store.spec, store.spec.streams[:1], 100)
        == store.batches(store.hooks[0], 100, seed=0, source="mini-pythia").buffer_bytes
        > 0
    )
    ws = Workspace(tmp_path / "ws")
    (tmp_path / "e.toml").write_text(
        'model="mini-pythia"\nrevisions=["step0", "step256", "step1664"]\nsite="L1R"\nexpansion=2\nctx=64\n'
    )
    plan, facts = plan_recipe(str(tmp_path / "e.toml"), ws), model_facts("mini-pythia", None)
    assert plan.memory["language models"] == 3 * facts.resident * 4 and plan.unit == 32 * 64 * 128 * 4
    twice = SIMPLE.model_copy(update={"held": 48.0})
    assert plan.memory_bytes(twice) - plan.memory_bytes(SIMPLE) == 24 * plan.unit, (
        "a machine says how much a model at work holds"
    )


def test_measuring_after_training_reads_and_looks_at_every_row():
    one = Dictionary(8, 64, 4)
    parts = {
        p.name: p.amounts
        for p in plan_training(
            [one] * 2, steps=1, batch_size=8, reading=Reading(16, measured_rows=1000), layout=Layout(jobs=2)
        ).parts
    }
    assert parts["measuring: reading rows"] == {"disk_read": 16000.0} and parts["measuring: selection"] == {
        "select": 64000.0
    }
    assert parts["measuring: decoder"] == {"decode": 1000 * 4 * 8 * 4.0} and parts["measuring: product"] == {
        "float32": 2 * 8 * 64 * 1000.0
    }


def test_what_a_step_costs_beyond_its_parts_is_solved_from_two_shapes():
    alone = (0.2e-3, 2.4e-3)
    step, stretch = solved(alone, [6e-4 + 1.4 * t for t in alone])
    assert step == pytest.approx(6e-4) and stretch == pytest.approx(1.4)
    assert solved(alone, (0.1e-3, 2.0e-3)) == (0.0, 1.0), "real steps are not shorter than their parts"
    assert solved((1e-3, 1e-3), (3e-3, 3e-3)) == (pytest.approx(2e-3), 1.0)


PUBLISHED = ("llama-scope", "universality", "evolution")


@pytest.mark.parametrize(
    "name", sorted(p.stem for p in (data_dir() / "recipes").glob("*.toml") if p.stem.startswith(PUBLISHED))
)
def test_published_settings_are_planned_offline(name, tmp_path):
    said = plan_recipe(name, Workspace(tmp_path / "ws")).on(machine_named("h200"))
    assert said["seconds"] > 0 and said["disk_bytes"] > 0 and said["binding"]
    if name == "llama-scope-32x":
        assert said["steps"] == 781_250 and said["parameters"] == 2 * 4096 * 131072 + 4096 + 131072
    if name == "evolution-6.9b":
        assert said["parameters"] > 8.5e9 and not said["fits_in_memory"]
        laid = plan_recipe(name, Workspace(tmp_path / "ws"), Layout(latents=8)).on(machine_named("h200"))
        assert laid["fits_in_memory"]


def test_sweeps_choose_a_layout_that_fits(tmp_path):
    assert counts("1..1024") == [2**i for i in range(11)] and counts("8") == [8]
    with pytest.raises(UsageError, match=r"1\.\.1024"):
        counts("8..1")
    planned = planned_recipe("evolution-160m", Workspace(tmp_path / "ws"))
    assert all(la.devices == 8 for la in layouts(planned, 8)) and Layout(1, 2, 4) in list(layouts(planned, 8))
    rows = sweep(planned, machine_named("h200"), [1, 8, 64])
    assert [r["devices"] for r in rows] == [1, 8, 64] and all(r["fits"] for r in rows[1:])
    fits = [r for r in rows if r["fits"]]
    assert fits[0]["efficiency"] == 1 and fits[-1]["hours"] < fits[0]["hours"]
    draw(rows, "t", tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml") and as_markdown(rows).count("\n") == 4


def test_this_machine_is_measured_and_others_are_described(tmp_path):
    here = this_machine(32, 256, 4, 64)
    rates = (here.float32, here.stream, here.select, here.scatter, here.disk_write, here.disk_save, here.commit)
    assert here.measured and min(rates) > 0 and here.step >= 0 and 1e8 < here.resident < 2e9
    assert set(machines()) >= {"cpu", "h100", "h200"} and all(machine_named(m).about for m in machines())
    own = tmp_path / "mine.toml"
    own.write_text(
        "\n".join(f"{k} = {v}" for k, v in SIMPLE.model_dump(exclude={"name", "about", "measured", "unified"}).items())
    )
    assert machine_named(str(own)).stream == 10
    with pytest.raises(UsageError, match="'h100'"):
        machine_named("h10")


def test_recipes_are_told_apart_and_bad_requests_named(tmp_path):
    assert (
        kind_of({"architecture": "mamba"}, "x") == "pretrain"
        and kind_of({"model": "m", "site": "L1R", "expansion": 8}, "x") == "evolve"
    )
    with pytest.raises(ConfigError, match="x is neither"):
        kind_of({"foo": 1}, "x")
    assert plan_recipe("mini-pythia", Workspace(tmp_path / "ws")).amounts["snapshots"] >= 14
    said = CliRunner().invoke(app, ["plan", "mini-evolve", "--machine", "h200", "-w", str(tmp_path / "ws"), "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["machine"] == "h200" and json.loads(said.stdout)["kind"] == "evolve"
