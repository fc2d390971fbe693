"""From a store and a recipe to complete dictionary folders, interrupted or not."""

from __future__ import annotations

import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from sae.errors import ConfigError, MismatchError, MissingError, UsageError
from sae.trainer import Trainer
from workbench import Run
from workbench.activations import ActivationStore, HarvestRecipe, harvest
from workbench.corpus import TokenPlan
from workbench.dictionaries.recipe import TrainRecipe, content_of, jobs_of, recorded_content
from workbench.dictionaries.train import train_recipe
from workbench.provenance import check_files
from workbench.workspace import Workspace

RECIPE = TrainRecipe(
    store="small", sites=("L1R",), expansions=(2,), ks=(4, 8), batch_size=256, tokens=256 * 12, sae={"lr": 2e-3}
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A store of both bundled models on random tokens: two hooks each, 64 sequences of 48 tokens."""
    ws = Workspace(tmp_path_factory.mktemp("training") / "ws")
    _random_store(ws, "small", seed=0)
    return ws


def _random_store(ws, id, *, seed):
    tokens = np.random.default_rng(seed).integers(1, 500, (64, 48)).astype(np.int32)
    tokens[:, 0] = 0
    plan = TokenPlan(tokens, np.arange(64, dtype=np.int32), np.zeros(64, np.uint8), {"made": "random"})
    recipe = HarvestRecipe.model_validate(
        {
            "id": id,
            "hooks": ["L0R", "L1R"],
            "n_seq": 64,
            "ctx": 48,
            "seqs_per_shard": 32,
            "sources": [{"model": "mini-pythia"}, {"model": "mini-mamba"}],
        }
    )
    harvest(recipe, ws, plan=plan)


@pytest.fixture
def ws(small, tmp_path):
    """An empty workspace beside the same store."""
    out = Workspace(tmp_path / "ws")
    (out.root / "stores").mkdir()
    shutil.copytree(small.path("stores", "small"), out.path("stores", "small"))
    return out


def test_every_combination_becomes_a_complete_folder(ws):
    ids = train_recipe(RECIPE, ws)
    assert ids == [f"mini-{m}.L1R-2x.k{k}" for m in ("pythia", "mamba") for k in (4, 8)]
    for id in ids:
        item = ws.get("dictionaries", id)
        assert check_files(item.path) == [] and not (item.path / "checkpoints").exists()
        numbers, metadata = item.manifest.numbers, item.manifest.metadata
        assert (
            numbers["n_heldout"] == 6 * 47 and 0 < numbers["explained_variance"] < 1 and numbers["l0"] <= numbers["k"]
        )
        assert metadata["hook_name"].startswith("blocks.1.") and metadata["site"] == "L1R" and metadata["kind"] == "sae"
    before = {id: ws.get("dictionaries", id).digest for id in ids}
    said = []
    assert train_recipe(RECIPE, ws, run=Run(say=said.append)) == ids and all("reused" in line for line in said)
    assert before == {id: ws.get("dictionaries", id).digest for id in ids}


def test_a_dictionary_from_before_rates_were_derived_is_told_apart(ws):
    recipe = RECIPE.model_copy(update={"sources": ("mini-mamba",), "ks": (4,), "sae": {}})
    id = train_recipe(recipe, ws)[0]
    have = ws.get("dictionaries", id).manifest
    (job,) = jobs_of(recipe, store := ActivationStore.open(ws.path("stores", "small")))
    now = content_of(recipe, job)
    assert have.numbers["rate"] == now["sae"]["lr"] == job.config.rate(recipe.steps) > 1e-3
    assert recorded_content(have, job, store) == now
    older = recorded_content(without(have, "settings"), job, store)
    assert older["sae"]["lr"] == 1e-3 and older["sae"]["details"]["encoder_rate"] == 1.0
    assert older | {"sae": now["sae"]} == now


def without(manifest, *names):
    """A manifest as an older version wrote it."""
    update = {
        part: {k: v for k, v in getattr(manifest, part).items() if k not in names} for part in ("numbers", "metadata")
    }
    return manifest.model_copy(update=update)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "l1"])
def test_a_preset_that_means_something_else_now_is_told_apart(ws, kind):
    sae = {"preset": "few-steps", "activation": kind}
    recipe = RECIPE.model_copy(update={"sources": ("mini-mamba",), "ks": (4,), "sae": sae})
    have = ws.get("dictionaries", train_recipe(recipe, ws)[0]).manifest
    (job,) = jobs_of(recipe, store := ActivationStore.open(ws.path("stores", "small")))
    now = content_of(recipe, job)
    assert recorded_content(have, job, store) == now
    assert (recorded_content(without(have, "settings"), job, store) == now) is (kind != "batchtopk")
    other = {**have.metadata["settings"], "dead_after": 7}
    changed = have.model_copy(update={"metadata": {**have.metadata, "settings": other}})
    assert recorded_content(changed, job, store)["sae"]["dead_after"] == 7


def test_an_interrupted_run_goes_on_bit_for_bit(ws, tmp_path, monkeypatch):
    recipe = RECIPE.model_copy(update={"sources": ("mini-mamba",), "ks": (4,)})
    whole = train_recipe(recipe, ws)[0]
    want = load_file(ws.path("dictionaries", whole) / "sae_weights.safetensors")

    other = Workspace(tmp_path / "other")
    shutil.copytree(ws.path("stores", "small"), other.path("stores", "small"))
    step = Trainer.step

    def interrupted(self, *args):
        if self.steps_done == 7:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, other)
    assert not other.complete("dictionaries", whole) and other.items("dictionaries") == []
    seen = []
    monkeypatch.setattr(Trainer, "step", lambda self, *args: (seen.append(self.steps_done), step(self, *args))[1])
    train_recipe(recipe, other)
    assert seen[0] > 0 and seen[-1] == recipe.steps - 1
    got = load_file(other.path("dictionaries", whole) / "sae_weights.safetensors")
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data_seed": 1}, "data_seed: 0 there, 1 asked"),
        ({"batch_size": 128, "tokens": 128 * 12}, "batch_size: 256 there, 128 asked"),
        ({"tokens": 256 * 13}, r"training steps \(tokens / batch_size\): 12 there, 13 asked"),
        ({"sae": {"lr": 1e-3}}, r"lr: 0\.002 there, 0\.001 asked"),
        ({"store": "other"}, r"store \(digest of its rows\)"),
    ],
)
def test_an_interrupted_run_goes_on_with_nothing_else(ws, tmp_path, monkeypatch, change, says):
    """Killed, changed, run again: refused by name; replaced, it has the bytes of a run that nothing disturbed."""
    recipe = RECIPE.model_copy(update={"sources": ("mini-mamba",), "ks": (4,)})
    changed = recipe.model_copy(update=change)
    if changed.store == "other":
        _random_store(ws, "other", seed=1)
    step = Trainer.step

    def interrupted(self, *args):
        if self.steps_done == 7:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as m:
        m.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe, ws)
    with pytest.raises(MismatchError, match=says) as refused:
        train_recipe(changed, ws)
    assert "--replace" in str(refused.value) and not ws.items("dictionaries")
    id = train_recipe(changed, ws, run=Run(replace=True))[0]
    apart = Workspace(tmp_path / "apart")
    (apart.root / "stores").mkdir()
    shutil.copytree(ws.path("stores", changed.store), apart.path("stores", changed.store))
    train_recipe(changed, apart)
    for name in ("sae_weights.safetensors", "cfg.json", "manifest.json"):
        assert (ws.path("dictionaries", id) / name).read_bytes() == (apart.path("dictionaries", id) / name).read_bytes()
    assert sorted(p.name for p in (ws.root / "dictionaries").iterdir()) == [id]


def test_a_dictionary_stays_until_the_new_one_is_whole(ws, monkeypatch):
    recipe = RECIPE.model_copy(update={"sources": ("mini-mamba",), "ks": (4,)})
    id = train_recipe(recipe, ws)[0]
    before = ws.get("dictionaries", id).digest
    changed, again, step = recipe.model_copy(update={"data_seed": 1}), Run(replace=True), Trainer.step

    def interrupted(self, *args):
        if self.steps_done == 7:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as m:
        m.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(changed, ws, run=again)
    assert ws.get("dictionaries", id).digest == before and [i.id for i in ws.items("dictionaries")] == [id]
    seen = []
    monkeypatch.setattr(Trainer, "step", lambda self, *args: (seen.append(self.steps_done), step(self, *args))[1])
    train_recipe(changed, ws, run=again)
    assert seen[0] > 0, "the interrupted replacement goes on"
    assert ws.get("dictionaries", id).digest != before and not (ws.root / "dictionaries" / ".next").exists()


def test_bad_recipes_name_the_value_and_the_remedy(small):
    from workbench.activations import ActivationStore

    store = ActivationStore.open(small.path("stores", "small"))
    with pytest.raises(UsageError, match="'mini-mamba'"):
        jobs_of(RECIPE.model_copy(update={"sources": ("mini-mambo",)}), store)
    with pytest.raises(UsageError, match=r"L7R.*L0R, L1R"):
        jobs_of(RECIPE.model_copy(update={"sites": ("L7R",)}), store)
    with pytest.raises(ConfigError, match=r"'lerning_rate'.*"):
        jobs_of(RECIPE.model_copy(update={"sae": {"lerning_rate": 1}}), store)
    with pytest.raises(ConfigError, match="k = 999"):
        jobs_of(RECIPE.model_copy(update={"ks": (999,)}), store)
    with pytest.raises(ValidationError, match="expansions, ks and seeds set this"):
        TrainRecipe(sae={"d_sae": 3})
    with pytest.raises(MissingError, match="small"):
        train_recipe(RECIPE.model_copy(update={"store": "smal"}), small)


def test_what_cannot_be_held_is_refused_before_it_starts(small):
    from workbench.activations import ActivationStore
    from workbench.dictionaries.train import check_memory

    wide = RECIPE.model_copy(update={"expansions": (10**7,)})
    with pytest.raises(UsageError, match=r"mini-pythia\.L1R-10000000x.*need [\d,]+ GB, this machine has \d+ GB"):
        train_recipe(wide, small)
    assert not small.items("dictionaries")
    jobs = jobs_of(RECIPE, ActivationStore.open(small.path("stores", "small")))
    check_memory(jobs)


def test_a_recipe_sends_its_steps_to_the_loggers_it_names(ws, monkeypatch):
    """The packages are no dependencies: what stands in for them records what they are given."""
    sent = {}

    class Writer:
        def __init__(self, folder):
            self.steps = sent.setdefault(folder, [])

        def add_scalar(self, name, value, step):
            self.steps.append((name, value, step))

    class Told:
        def __init__(self, project, **settings):
            sent["wandb"] = (project, settings)
            self.rows = sent.setdefault("rows", [])

        def define_metric(self, *args, **kwargs):
            sent["metric"] = kwargs

        def log(self, row):
            self.rows.append(row)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Told))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    recipe = RECIPE.model_copy(update={"sources": ("mini-mamba",), "log_to": ("tensorboard", "wandb")})
    ids = train_recipe(recipe, ws)
    (events,) = (v for k, v in sent.items() if k.endswith(os.path.join("logs", "small.mini-mamba.L1R")))
    assert {name for name, _, _ in events} >= {f"{id}/fvu" for id in ids} and {step for *_, step in events} == {
        0,
        10,
        11,
    }
    assert sent["wandb"][0] == "interpretability-workbench" and sent["wandb"][1]["mode"] == "offline"
    assert [r["training_step"] for r in sent["rows"]] == [0, 0, 10, 10, 11, 11]
    # who is told changes no dictionary: the same recipe without them reuses these
    said = []
    train_recipe(recipe.model_copy(update={"log_to": ()}), ws, run=Run(say=said.append))
    assert all("reused" in line for line in said)


def test_a_logger_whose_package_is_missing_is_named_before_training(ws, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingError, match="'wandb'"):
        train_recipe(RECIPE.model_copy(update={"sources": ("mini-mamba",), "log_to": ("wandb",)}), ws)
    assert not list(ws.items("dictionaries"))


def test_what_a_device_has_not_is_refused_before_anything_is_begun(ws, tmp_path):
    for change, problem, says in (
        ({"device": "cuda:99"}, MissingError, "cuda:99: this PyTorch .* sees no such device"),
        ({"device": "tpu"}, UsageError, "device tpu: cpu, cuda, cuda:N or mps"),
        ({"sae": {"products": "tf32"}}, ConfigError, "products = 'tf32': cpu has no TF32"),
    ):
        with pytest.raises(problem, match=says):
            train_recipe(RECIPE.model_copy(update=change), ws)
    assert not [p for p in (ws.root / "dictionaries").rglob("*") if p.is_file()]
    recipe = HarvestRecipe.model_validate({"id": "there", "device": "cuda:99", "sources": [{"model": "mini-pythia"}]})
    with pytest.raises(MissingError, match="cuda:99"):
        harvest(recipe, ws)
    assert not (ws.root / "stores" / "there").exists()


def test_other_arithmetic_is_said_and_kept(ws):
    lines = []
    change = {"sae": {"products": "bf16"}, "sources": ("mini-pythia",), "ks": (4,)}
    (id,) = train_recipe(RECIPE.model_copy(update=change), ws, run=Run(say=lines.append))
    assert f"training {id} (the encoder's product in bfloat16, sums in float32)" in lines
    assert ws.get("dictionaries", id).manifest.recipe["sae"]["products"] == "bf16"
    with pytest.raises(MismatchError, match="products"):
        train_recipe(RECIPE.model_copy(update={**change, "sae": {}}), ws)
