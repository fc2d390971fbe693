"""From a recipe to a store: numbers are the model's own, sources are aligned, what exists is reused, and the two verbs
behave.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sae.errors import ConfigError, MismatchError, MissingError, UsageError
from tests.workbench.activations.small import content
from tests.workbench.bridges import tiny
from workbench.activations import ActivationStore, HarvestRecipe, StreamingStore, harvest
from workbench.activations.format.errors import StoreMismatch
from workbench.config import data_dir
from workbench.corpus import TokenPlan
from workbench.models import load_model
from workbench.workspace import Workspace

PLAN = TokenPlan(
    np.random.default_rng(0).integers(1, 50, (20, 12)).astype(np.int32),
    np.arange(20, dtype=np.int32),
    np.zeros(20, np.uint8),
    {"made": "by a test"},
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A tiny Transformer and a tiny Mamba as model folders without tokenizers."""
    root = tmp_path_factory.mktemp("models")
    for kind in ("neox", "mamba"):
        tiny(kind).save_pretrained(root / kind)
    return {kind: str(root / kind) for kind in ("neox", "mamba")}


def recipe_of(folders, **changes) -> HarvestRecipe:
    values = {
        "id": "tiny",
        "sources": [
            {"model": folders["neox"]},
            {"model": folders["mamba"], "hooks": {"middle": "blocks.0.hook_mixer_out"}},
        ],
        "hooks": ["*R", "middle"],
        "n_seq": 20,
        "ctx": 12,
        "seqs_per_shard": 7,
        "batch_size": 3,
    }
    if "sources" not in changes:
        values["sources"][0]["hooks"] = {"middle": "blocks.0.hook_attn_out"}
    return HarvestRecipe.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def harvested(folders, tmp_path_factory) -> Path:
    return harvest(recipe_of(folders), Workspace(tmp_path_factory.mktemp("ws")), plan=PLAN)


def test_numbers_are_the_models_own(folders, harvested):
    s = ActivationStore.open(harvested)
    assert s.hooks == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "middle"] and s.sources == [
        "neox",
        "mamba",
    ]
    for source in s.sources:
        model = load_model(folders[source])
        at = {hook: s.spec.stream(source, hook).at for hook in s.hooks}
        with torch.no_grad():
            _, cache = model.run_with_cache(
                torch.from_numpy(PLAN.tokens[7:10].astype(np.int64)), names_filter=list(at.values())
            )
        for hook in s.hooks:
            expected = cache[at[hook]][:, 1:].reshape(-1, s.width(hook, source))
            assert torch.allclose(s.read(hook, slice(77, 110), source), expected, atol=1e-6)
    assert np.array_equal(s.tokens()[0], PLAN.tokens[:, 1:].reshape(-1))
    assert np.array_equal(s.documents()[0], PLAN.doc_ids)
    assert list(s.heldout) == [18, 19]


def test_deep_layers_are_not_run(folders, monkeypatch):
    """The forward pass ends at the last hook that is wanted."""
    from workbench.activations.harvesting.forward import capture

    model = load_model(folders["neox"])
    ran = []
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: ran.append(1))]):
        capture(model, torch.ones(1, 4, dtype=torch.int64), ["blocks.0.hook_resid_post"])
        assert ran == []
        capture(model, torch.ones(1, 4, dtype=torch.int64), ["blocks.1.hook_resid_post"])
        assert len(ran) == 1


def test_reuse_and_mismatch(folders, harvested, tmp_path, monkeypatch):
    """A complete store is reused without loading a model; other recipes and other weights are refused by name."""
    workspace = Workspace(harvested.parent.parent)
    before = content(harvested)
    with monkeypatch.context() as m:
        m.setattr("workbench.models.load_model", lambda *a: pytest.fail("a model was loaded"))
        assert harvest(recipe_of(folders), workspace) == harvested
    with pytest.raises(StoreMismatch, match="dtype: float32 there, bfloat16 asked"):
        harvest(recipe_of(folders, dtype="bfloat16"), workspace)
    moved = Path(shutil.move(folders["neox"], tmp_path / "kept"))
    tiny("neox", seed=9).save_pretrained(folders["neox"])
    try:
        with pytest.raises(MismatchError, match=r"models/neox .*weights: [0-9a-f]+ there, [0-9a-f]+ asked"):
            harvest(recipe_of(folders), workspace)
    finally:
        shutil.rmtree(folders["neox"])
        shutil.move(moved, folders["neox"])
    assert content(harvested) == before


@pytest.mark.faults
def test_an_interrupted_store_refuses_changed_weights(folders, harvested, tmp_path):
    """Fault 11: same name, one weight changed, half the shards missing."""
    workspace = Workspace(tmp_path / "ws")
    half = Path(shutil.copytree(harvested, tmp_path / "ws" / "stores" / "tiny"))
    (half / "seal.json").unlink()
    (half / "shards" / "000001.h5").unlink()
    shutil.copytree(folders["neox"], tmp_path / "neox")
    model = tiny("neox")
    with torch.no_grad():
        model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "neox")
    recipe = recipe_of({"neox": str(tmp_path / "neox"), "mamba": folders["mamba"]})
    with pytest.raises(StoreMismatch, match=r"sources\[0\]"):
        harvest(recipe, workspace, plan=PLAN)
    assert not (half / "shards" / "000001.h5").exists()
    harvest(recipe_of(folders), workspace, plan=PLAN)
    assert content(half) == content(harvested)


def test_a_stream_of_a_recipe(folders, harvested, tmp_path):
    wanted = list(
        ActivationStore.open(harvested).batches("middle", 16, seed=1, source=["neox", "mamba"], epochs=2, window=1)
    )
    with StreamingStore.from_recipe(recipe_of(folders), Workspace(tmp_path), capacity=2, plan=PLAN) as s:
        got = list(s.batches("middle", 16, seed=1, source=["neox", "mamba"], epochs=2))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"hooks": ["blocks.0.hook_resid_pots"]}, "did you mean 'blocks.0.hook_resid_post'"),
        ({"hooks": ["L9R"]}, "no site 'L9R'"),
        ({"hooks": []}, "names no hooks"),
        ({"n_seq": 21}, "the plan of tokens has shape"),
    ],
)
def test_bad_recipes(folders, tmp_path, changes, words):
    with pytest.raises(UsageError, match=words):
        harvest(recipe_of(folders, sources=[{"model": folders["neox"]}], **changes), Workspace(tmp_path), plan=PLAN)
    assert not (tmp_path / "stores").exists()


def test_bundled_recipes_are_valid():
    from workbench.config import read_recipe

    big = read_recipe(HarvestRecipe, "mini-harvest")
    assert big.n_seq / big.seqs_per_shard >= 12
    assert read_recipe(HarvestRecipe, "demo-harvest").id == "demo"


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    """A recipe over a text file, with a tiny model that has the bundled tokenizer."""
    root = tmp_path_factory.mktemp("recipe")
    tiny("neox", vocab_size=512).save_pretrained(root / "model")
    shutil.copy(data_dir() / "models" / "mini-pythia" / "tokenizer.json", root / "model" / "tokenizer.json")
    (root / "texts").mkdir()
    for i in range(40):
        (root / "texts" / f"{i}.txt").write_text(" ".join(f"the value of item {j * i} is {j}." for j in range(60)))
    (root / "r.toml").write_text(
        'id = "text"\nhooks = ["L1R"]\nn_seq = 60\nctx = 16\nseqs_per_shard = 5\nbatch_size = 5\n[corpus]\nkind ='
        ' "text"\ntiled_share = 0.0\nsnippet_share = 0.0\nagreement_share = 0.0\npaths ='
        f' ["{root}/texts"]\n[[sources]]\nmodel = "{root}/model"\n'
    )
    return root / "r.toml"


def invoke(*arguments: object):
    from workbench.cli import app

    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_two_verbs(recipe_file, tmp_path):
    """harvest --json, reuse, check, damage, check again (exit 1), harvest makes the one shard, check --deep."""
    ws = tmp_path / "ws"
    first = invoke("harvest", recipe_file, "--workspace", ws, "--json")
    assert first.exit_code == 0, first.output
    about = json.loads(first.stdout)
    store = ws / "stores" / "text"
    kept = len(ActivationStore.open(store))  # BOS inside the windows is none of its rows
    assert about["rows"] == kept and 60 * 14 < kept < 60 * 15
    assert about["shards"] == 12 and len(about["store_id"]) == 64 and about["bytes"] > 0
    before = content(store)
    assert json.loads(invoke("harvest", recipe_file, "--workspace", ws, "--json").stdout) == about
    assert json.loads(invoke("check", store, "--json").stdout)["ok"] is True
    path = store / "shards" / "000004.h5"
    os.chmod(path, 0o644)
    with open(path, "r+b") as f:
        f.seek(5000)
        byte = f.read(1)[0]
        f.seek(5000)
        f.write(bytes([byte ^ 1]))
    bad = invoke("check", store, "--deep", "--json")
    report = json.loads(bad.stdout)
    assert (
        bad.exit_code == 1
        and report["set_aside"] == ["quarantine/000004.0.h5"]
        and "workbench harvest" in report["remedy"]
    )
    again = invoke("harvest", recipe_file, "--workspace", ws, "--json")
    assert again.exit_code == 0 and content(store) == before
    assert invoke("check", store, "--deep").exit_code == 0
    assert invoke("check", tmp_path / "nothing").exit_code == 1
    assert invoke("harvest", "mini-harvset", "--workspace", ws).exit_code != 0


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sent, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_worker_processes_and_signals(recipe_file, tmp_path, sent, code):
    """Fault 5 at the command line with two workers: exit code, no process left, resume to the same bytes."""
    ws = tmp_path / "ws"
    command = [sys.executable, "-m", "workbench", "harvest", str(recipe_file), "--workspace", str(ws), "--workers", "2"]
    p = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    store = ws / "stores" / "text"
    while not (store / "store.json").exists():
        assert p.poll() is None, "the harvest ended before it began"
        time.sleep(0.02)
    p.send_signal(sent)
    assert p.wait(timeout=300) in (code, 0)
    assert os.listdir(store / "tmp") == []
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    reference = invoke("harvest", recipe_file, "--workspace", tmp_path / "reference")
    assert reference.exit_code == 0
    assert content(store) == content(tmp_path / "reference" / "stores" / "text")


def test_unknown_key_names_the_nearest(tmp_path):
    from sae.strict import parse_config

    with pytest.raises(ConfigError, match=r"unknown key 'n_seqs' \(did you mean 'n_seq'\?\)"):
        parse_config(HarvestRecipe, {"id": "x", "sources": [{"model": "m"}], "n_seqs": 4}, where="r.toml")


def test_a_missing_model_folder_is_named(tmp_path):
    recipe = HarvestRecipe.model_validate({"id": "x", "hooks": ["L0R"], "sources": [{"model": "./nowhere/model"}]})
    with pytest.raises(MissingError, match=r"'\./nowhere/model' does not exist"):
        harvest(recipe, Workspace(tmp_path / "ws"))
