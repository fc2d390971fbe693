"""`workbench verify`: a right dictionary passes; each usual mistake is named, by the setting that undoes it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import sae
import workbench
from sae.errors import UsageError
from sae.formats import write_sparsify
from workbench.activations import HarvestRecipe
from workbench.analysis.evaluation.verifying import Check, ConfiguredDictionary, verify
from workbench.cli import app
from workbench.dictionaries.recipe import TrainRecipe
from workbench.models import load_model
from workbench.workspace import Workspace

ID = "mini-pythia.L1R-4x"
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    """Real rows of a bundled model, and a dictionary that learnt them."""
    ws = Workspace(tmp_path_factory.mktemp("verify") / "ws")
    recipe = {"id": "small", "hooks": ["L1R"], "n_seq": 250, "ctx": 64, "corpus": {"kind": "mini"}}
    workbench.harvest(ws, HarvestRecipe.model_validate(recipe | {"sources": [{"model": "mini-pythia"}]}))
    workbench.train(ws, TrainRecipe(store="small", expansions=(4,), ks=(16,), batch_size=512, tokens=512 * 200))
    return ws


@pytest.fixture(scope="module")
def right(ws):
    return sae.load(ws.path("dictionaries", ID)).folded()


def saved(dictionary, folder, **metadata):
    dictionary.metadata = {**dictionary.metadata, **metadata}
    dictionary.save(folder)
    return str(folder)


def copy(dictionary):
    import copy

    return copy.deepcopy(dictionary)


def test_a_right_dictionary_passes_with_its_own_claims(ws):
    found = workbench.verify(ws, ID)
    assert found.fits and found.cause is None and "look like" in found.verdict
    sources = [c.source for c in found.checks]
    assert "k = 16" in sources and any("own held-out text" in s for s in sources)
    assert found.metrics["l0"]["value"] == pytest.approx(16, abs=0.5) and found.metrics["l0"]["n"] > 1000
    assert {t.kind for t in found.trials} == {
        "configuration",
        "scale",
        "factor",
        "bias",
        "hook",
        "BOS",
    }  # no need for snapshots
    assert found.scales["active_latent"] < found.scales["row"] == pytest.approx(found.scales["reconstruction"], rel=0.5)


def test_a_scale_that_was_not_folded_is_named_with_its_rule(ws, right, tmp_path):
    """The dictionary as it was in training, when rows had a mean length of sqrt(d)."""
    rows = workbench.ActivationStore.open(ws.path("stores", "small")).sequence(0, HOOK)
    s = right.d_in**0.5 / float(torch.as_tensor(rows).float().norm(dim=-1).mean())
    wrong = copy(right)
    with torch.no_grad():
        wrong.b_dec *= s
        wrong.b_enc *= s
    found = workbench.verify(ws, saved(wrong, tmp_path / "unfolded"))
    assert not found.fits and found.cause.kind == "scale" and "not folded" in found.verdict
    assert "mean length of sqrt(d)" in found.cause.setting and found.cause.ev > found.trials[0].ev


def test_a_factor_without_a_rule_is_found(ws, right, tmp_path):
    wrong = copy(right)
    with torch.no_grad():
        wrong.b_dec *= 5
        wrong.b_enc *= 5
    found = workbench.verify(ws, saved(wrong, tmp_path / "five"))
    assert not found.fits and found.cause.kind == "factor"
    assert 3 < float(found.cause.setting.split("about ")[1]) < 8


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out"])
def test_a_dictionary_at_the_wrong_place_is_named(ws, right, tmp_path, hook):
    folder = saved(copy(right), tmp_path / "elsewhere", hook_name=hook, site=None)
    found = workbench.verify(ws, folder)
    assert not found.fits and found.cause.kind == "hook"
    assert f"does not belong at {hook}" in found.verdict and found.cause.setting.startswith(f"{HOOK} of mini-pythia")


def test_a_missing_bos_token_is_named(ws, right, tmp_path):
    found = workbench.verify(ws, saved(copy(right), tmp_path / "headless", prepend_bos=False))
    assert not found.fits and found.cause.kind == "BOS"
    assert "BOS token is missing" in found.verdict and "with a BOS token" in found.cause.setting
    assert found.setting["bos"] is False


def test_another_snapshot_of_the_model_is_named(ws, right, tmp_path):
    folder = saved(copy(right), tmp_path / "early", revision="step0")
    found = workbench.verify(ws, folder)
    assert not found.fits and found.cause.kind == "revision" and "another revision" in found.verdict


def test_a_dictionary_that_nothing_explains_is_said_to_fit_nowhere(ws, right, tmp_path):
    wrong = copy(right)
    with torch.no_grad():
        wrong.dec_FD.copy_(wrong.dec_FD[torch.randperm(wrong.d_sae, generator=torch.Generator().manual_seed(0))])
    found = workbench.verify(ws, saved(wrong, tmp_path / "shuffled"))
    assert not found.fits and found.cause is None and "cause not established: none of the" in found.verdict


def test_another_library_s_folder_in_the_shell(ws, right, tmp_path):
    """One line on the exit code's side, one document on the other; the folder does not say its model."""
    write_sparsify(right, tmp_path / "theirs")
    at = [str(tmp_path / "theirs"), "-w", str(ws.root), "--json"]
    said = CliRunner().invoke(app, ["verify", *at, "--model", "mini-pythia", "--hook", HOOK])
    assert said.exit_code == 0, said.output
    document = json.loads(said.stdout)
    assert document["fits"] and document["cause"] is None and document["setting"]["n_sequences"] == 32
    away = CliRunner().invoke(app, ["verify", *at, "--model", "mini-pythia", "--hook", "blocks.0.hook_resid_post"])
    assert away.exit_code == 1 and json.loads(away.stdout)["cause"]["kind"] == "hook"
    mute = CliRunner().invoke(app, ["verify", *at, "--hook", HOOK])
    assert mute.exit_code == 2 and "--model" in mute.stderr


def test_a_published_l0_is_held_against_the_measured_one(ws, right):
    model = load_model("mini-pythia")
    tokens = workbench.ActivationStore.open(ws.path("stores", "small"))
    rows = torch.tensor([tokens.sequence_tokens(i).tolist() for i in range(8)]).numpy()
    subject = ConfiguredDictionary("theirs", right, HOOK, HOOK, "mini-pythia", None, {"claimed_l0": 60})
    found = verify(subject, model, rows)
    assert not found.fits and [c.name for c in found.checks if not c.ok] == ["L0"]
    assert verify(replace(subject, claimed={"claimed_l0": 20}), model, rows).fits
    with pytest.raises(UsageError, match="at least 5 tokens"):
        verify(subject, model, rows[:, :4])


def test_a_check_says_what_it_expected():
    assert str(Check("L0", 40.0, 8, 16, "k = 16")) == "L0 is 40, expected 8 to 16 (k = 16)"
    assert not Check("EV", 0.1, 0.5, None, "").ok and Check("EV", 0.5, 0.5, None, "").ok


def test_files_that_are_not_what_they_were_are_refused_before_a_model_is_loaded(tmp_path):
    """By the outputs of their own library that lie beside them, and by the digests of their manifest."""
    golden = Path(__file__).parents[3] / "sae" / "golden" / "saelens-6.54.12-topk"
    folder = Path(shutil.copytree(golden, tmp_path / "theirs"))
    weights = folder / "sae_weights.safetensors"
    t = load_file(weights)
    save_file(t | {"b_enc": t["b_enc"] * 1.1}, weights)
    out = CliRunner().invoke(app, ["verify", str(folder), "-w", str(tmp_path / "ws"), "--model", "none-such"])
    assert out.exit_code == 1 and "expected.safetensors" in out.output and len(out.output.strip().splitlines()) == 1
    ours = workbench.import_dictionary(tmp_path / "ws", str(golden), id="ours", model="mini-pythia")
    t = load_file(ours.path / "sae_weights.safetensors")
    save_file(t | {"b_enc": t["b_enc"] * 1.1}, ours.path / "sae_weights.safetensors")
    out = CliRunner().invoke(app, ["verify", "ours", "-w", str(tmp_path / "ws")])
    assert out.exit_code == 1 and "not what its manifest says: sae_weights.safetensors" in out.output


def test_only_tokens_that_are_data_count_with_either_start(ws, right):
    """Words of other roles, say: as a store's mask has them, also where the first token is taken away."""
    model = load_model("mini-pythia")
    store = workbench.ActivationStore.open(ws.path("stores", "small"))
    tokens = np.stack([store.sequence_tokens(i) for i in range(8)])
    is_row = np.zeros(tokens.shape, bool)
    is_row[:, 10::3] = True
    subject = ConfiguredDictionary("mine", right, HOOK, HOOK, "mini-pythia", None, {}, is_row=is_row)
    whole = replace(subject, is_row=None).rows(model, tokens)
    kept = subject.rows(model, tokens)
    assert len(kept.x) == min(1024, is_row.sum()) < len(whole.x)
    _, cache = model.run_with_cache(torch.from_numpy(tokens).long(), names_filter=[HOOK])
    assert torch.allclose(kept.x, cache[HOOK][torch.from_numpy(is_row)].detach(), atol=1e-4)
    without = subject.rows(model, tokens[:, 1:])
    assert len(without.x) == len(kept.x) and not torch.allclose(without.x, kept.x)
    assert verify(subject, model, tokens).metrics["l0"]["n"] == is_row[:, 1:-1].sum()
