"""Attribution and its curves where the truth is known: a crosscoder without error, and a task that hangs on a few
latents.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crosscoders import Crosscoder
from crosscoders.gates import OwnMagnitude
from sae.activation import TopK
from sae.errors import UsageError
from tests.workbench.fakes import FakeBridge
from workbench.analysis.circuits.tasks import PromptSet
from workbench.analysis.evolution import attribution as at
from workbench.analysis.evolution.snapshots import OnlineBatches, Snapshots, Source

D, V, HOOK = 16, 50, "blocks.0.hook_resid_post"


def exact_crosscoder(kind: type[TopK] = TopK) -> Crosscoder:
    """Plus and minus every coordinate of two sources: no reconstruction error, half of the latents on."""
    cc = Crosscoder([D, D], 4 * D, kind(2 * D), sources=["a", "b"])
    eye = torch.eye(2 * D)
    with torch.no_grad():
        cc.dec_FD.copy_(torch.cat([eye, -eye]))
        cc.enc_FD.copy_(cc.dec_FD)
    cc.folded_in = True
    return cc.requires_grad_(False)


@pytest.fixture(scope="module")
def snapshots() -> Snapshots:
    models = {"step0": FakeBridge(d=D, vocab=V, seed=1), "step1": FakeBridge(d=D, vocab=V, seed=2)}
    return Snapshots(
        [Source(r, "fake", r, HOOK, i) for i, r in enumerate(models)], load=lambda name, revision: models[revision]
    )


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    rng = np.random.default_rng(0)
    clean = rng.integers(1, V, (24, 6))
    corrupt = clean.copy()
    corrupt[:, 3] = rng.integers(1, V, 24)
    return PromptSet("fake", clean, corrupt, clean, rng.integers(1, 25, 24), rng.integers(25, V, 24))


@pytest.mark.parametrize("kind", [TopK, OwnMagnitude])
def test_attributions_add_up_to_the_effect(snapshots, prompts, kind):
    cc = exact_crosscoder(kind)
    every = at.encode_prompts(cc, snapshots, prompts)
    for i in range(2):
        encoded = every.at(cc, i)
        W = cc.split(cc.W_dec)[i][encoded.latents]
        model = snapshots.model(i)
        clean = at._metric(model(torch.from_numpy(prompts.clean))[:, -1], prompts)
        corrupt = at._metric(model(torch.from_numpy(prompts.corrupt))[:, -1], prompts)
        full = at.run_with(model, HOOK, prompts, encoded.clean, encoded.clean, W)
        empty = at.run_with(model, HOOK, prompts, encoded.clean, encoded.corrupt, W)
        assert torch.allclose(full, clean, atol=1e-4) and torch.allclose(empty, corrupt, atol=1e-3), (
            "no error: the counterfactual codes are the counterfactual run"
        )
        total = at.integrated_gradients(model, HOOK, prompts, encoded, W, steps=60).sum(1)
        assert torch.allclose(total, clean - corrupt, atol=0.05 * float((clean - corrupt).abs().max()))


def test_the_other_source_has_no_say(snapshots, prompts):
    """Latents that live in source b only cannot be attributed anything at source a."""
    cc = exact_crosscoder()
    encoded = at.encode_prompts(cc, snapshots, prompts)
    W = cc.split(cc.W_dec)[0][encoded.latents]
    attribution = at.integrated_gradients(snapshots.model(0), HOOK, prompts, encoded, W)
    foreign = torch.isin(encoded.latents, torch.cat([torch.arange(D, 2 * D), torch.arange(3 * D, 4 * D)]))
    assert foreign.any() and (attribution[:, foreign] == 0).all() and (attribution[:, ~foreign] != 0).any()


def test_curves_beat_their_controls_and_meet_their_ends(snapshots, prompts):
    result = at.attribute(exact_crosscoder(), snapshots, prompts, ks=(1, 2, 4, 8, 16, 48), draws=2)
    assert set(result.curves["source"]) == {"step0", "step1"} and result.accuracy.shape == (2,)
    for _, table in result.curves.groupby("source"):
        assert set(table["ranking"]) == {"all", "attribution", *at.CONTROLS}
        assert table["n"].eq(12).all()
        every = table[(table["ranking"] == "attribution") & (table["k"] == table["k"].max())].set_index("mode")["share"]
        assert every["destroy"] < 0.35 and every["keep"] > 0.65
        assert at.area_over(table, "random") > 0.05
    one = result.latents[result.latents["source"] == "step0"]
    assert len(one) <= 4 * D and one["n"].eq(12).all()


def test_too_few_prompts_are_refused(snapshots, prompts):
    with pytest.raises(UsageError, match="at least 8 prompts"):
        at.attribute(exact_crosscoder(), snapshots, prompts[:6])


def test_online_rows_are_the_models_activations_in_a_reproducible_order(snapshots):
    tokens = np.random.default_rng(3).integers(1, V, (12, 9)).astype(np.int32)
    batches = OnlineBatches(snapshots, tokens, 8, seed=5, group=4)
    it = iter(batches)
    epoch = [next(it) for _ in range(12)]
    want = snapshots.activations(torch.from_numpy(tokens).long())[:, 1:].reshape(-1, 2 * D)
    got = torch.cat(epoch)
    assert torch.allclose(got.sum(0), want.sum(0), atol=1e-3) and len(got) == len(want), "every row once per epoch"
    again = iter(batches.starting_at(7))
    for i in range(7, 12):
        assert torch.equal(next(again), epoch[i])
    cached = OnlineBatches(snapshots, tokens, 8, seed=5, group=4, cache=True)
    it = iter(cached)
    for i in range(12):
        assert torch.allclose(next(it), epoch[i], atol=2e-2)
    second = [next(it) for _ in range(4)]
    assert not torch.equal(second[0], epoch[0]), "the second epoch has another order"
    fresh = iter(OnlineBatches(snapshots, tokens, 8, seed=5, group=4, cache=True).starting_at(12))
    assert all(torch.equal(next(fresh), x) for x in second), (
        "what a run kept and what a resumed run computes is the same"
    )
    with pytest.raises(UsageError, match="smaller batch"):
        next(iter(OnlineBatches(snapshots, tokens, 1000, seed=0)))


@pytest.mark.parametrize(("parts", "cache"), [(2, False), (2, True), (5, False)])
def test_online_rows_of_several_processes_are_those_of_one(snapshots, monkeypatch, parts, cache):
    """Every process runs the models on its own sequences; their shares are the batch, and a process may have none of
    it.
    """
    monkeypatch.setattr("workbench.analysis.evolution.snapshots.AT_ONCE", 2)
    tokens = np.random.default_rng(3).integers(1, V, (12, 9)).astype(np.int32)
    whole = OnlineBatches(snapshots, tokens, 8, seed=5, group=4, cache=cache)
    ran: list[int] = []
    for step, want in zip(range(3, 20), whole.starting_at(3), strict=False):
        shares = [next(iter(whole.share(part, parts).starting_at(step))) for part in range(parts)]
        assert torch.equal(torch.cat([s.batch_index for s in shares]).sort().values, torch.arange(8)) and {
            s.batch_size for s in shares
        } == {8}
        for share in shares:
            assert torch.equal(share.rows, want[share.batch_index])
        ran.append(sum(len(s.rows) == 0 for s in shares))
    assert max(ran) == (3 if parts == 5 else 0)


@pytest.mark.parametrize("name", ["mini-pythia", "mini-mamba"])
def test_runs_from_the_block_of_the_hook_equal_whole_runs(name):
    from workbench.models import load_model

    model, rng = load_model(name), np.random.default_rng(0)
    tokens = rng.integers(1, 200, (6, 9))
    prompts = PromptSet("fake", tokens, tokens, tokens, rng.integers(1, 100, 6), rng.integers(100, 200, 6))
    hook, W = "blocks.2.hook_resid_post", torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    codes, other = torch.rand(2, 6, 9, 5, generator=torch.Generator().manual_seed(1))
    whole = at.run_with(
        model, hook, prompts, codes, other, W, lambda: model(torch.from_numpy(tokens), return_type="logits")[:, -1]
    )
    leaf = other.clone().requires_grad_(True)
    m = at.run_with(model, hook, prompts, codes, leaf, W)
    m.sum().backward()
    assert torch.allclose(m, whole, atol=1e-4) and not torch.allclose(
        m, at.run_with(model, hook, prompts, codes, codes, W), atol=1e-2
    )
    assert leaf.grad is not None and leaf.grad[:, -1].abs().min() > 0
