"""Effects on the loss: those of the model computed by hand, many at a time against one at a time, and peers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae.errors import UsageError
from tests.workbench.fakes import FakeBridge, FakeDictionary
from workbench.analysis.trust.effects import GAP, WINDOW, Effects, ablation_effects, against_peers, losses, packed
from workbench.stats import Estimate

HOOK = "blocks.1.hook_resid_post"
EARLY = "blocks.0.hook_resid_post"


def _text(sequences: int = 6, ctx: int = 12) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(1, 50, (sequences, ctx))
    return ids, np.ones(ids.shape, bool)


def test_an_effect_is_the_loss_of_the_model_without_the_latent() -> None:
    model, dictionary, (ids, rows) = FakeBridge(), FakeDictionary(), _text()
    e = ablation_effects(model, dictionary, EARLY, ids, rows, ablations=100)
    assert (e.n == e.fired).all() and e.n.sum() > 50, "every firing was ablated"
    latent = int(e.n.argmax())
    keep = torch.as_tensor(rows).clone()
    keep[:, 0] = False
    tokens, caught = torch.as_tensor(ids), []
    with model.hooks([(EARLY, lambda x, hook: caught.append(x))]):
        before = losses(model, tokens, keep)
    values, indices = dictionary.encode_sparse(caught[0])
    changes = []
    for b, t, k in ((indices == latent) & (values > 0)).nonzero().tolist():
        if t in (0, ids.shape[1] - 1):
            continue  # BOS, and a token from which nothing is predicted
        removed = torch.zeros_like(caught[0])
        removed[b, t] = values[b, t, k] * dictionary.W_dec[latent]
        with model.hooks([(EARLY, lambda x, hook, removed=removed: x - removed)]):
            changes.append(float((losses(model, tokens, keep) - before)[b, t : t + WINDOW].sum()))
    assert e.n[latent] == len(changes) > 1
    assert e.mean[latent] == pytest.approx(np.mean(changes), abs=1e-4)  # 12 tokens: nothing was ablated together
    assert e.low[latent] < e.mean[latent] < e.high[latent]
    assert e.agreement.value == pytest.approx(1) and e.agreement.n == int(e.alone_n.sum())


def test_many_at_a_time_agree_with_one_at_a_time_and_say_how_well() -> None:
    model, dictionary, (ids, rows) = FakeBridge(), FakeDictionary(), _text(8, 80)
    e = ablation_effects(model, dictionary, EARLY, ids, rows, ablations=6)
    assert e.n.max() == 6 and e.agreement.n == int(e.alone_n.sum()) > 30
    assert 0.9 < e.agreement.value < 1 - 1e-9, "what stands further back is noise, and little"
    assert e.agreement.low < e.agreement.value < e.agreement.high
    sampled = e.alone_n > 0
    assert np.isfinite(e.alone[sampled]).all() and np.isnan(e.alone[~sampled]).all()


def test_at_the_last_layer_nothing_reaches_from_one_token_to_another() -> None:
    model, dictionary, (ids, rows) = FakeBridge(), FakeDictionary(), _text(4, 60)
    e = ablation_effects(model, dictionary, HOOK, ids, rows, ablations=20)
    assert e.agreement.value > 1 - 1e-6


def test_only_the_latents_asked_for_are_ablated() -> None:
    model, dictionary, (ids, rows) = FakeBridge(), FakeDictionary(), _text()
    every = ablation_effects(model, dictionary, HOOK, ids, rows, ablations=100)
    some = np.argsort(-every.fired)[:3]
    e = ablation_effects(model, dictionary, HOOK, ids, rows, latents=some, ablations=100)
    assert set(np.flatnonzero(e.n)) == set(some.tolist())
    assert e.mean[some] == pytest.approx(every.mean[some], abs=1e-5) and (e.fired == every.fired).all()


def test_a_direction_the_loss_does_not_see_has_no_effect() -> None:
    model, dictionary, (ids, rows) = FakeBridge(), FakeDictionary(), _text()
    model.W_U = model.W_U.clone()
    model.W_U[0] = 0.0
    dictionary.W_dec = torch.zeros_like(dictionary.W_dec)
    dictionary.W_dec[:, 0] = 1.0
    e = ablation_effects(model, dictionary, HOOK, ids, rows)
    assert np.nanmax(np.abs(e.mean)) < 1e-6
    assert np.isnan(e.mean[e.n == 0]).all() and e.n.sum() > 0


def test_a_latent_that_is_the_answer_is_missed_by_as_much_as_it_gave() -> None:
    """One latent writes the logits of the next token; without it all tokens are as likely: ln V - (what was left)."""
    model, (ids, rows) = FakeBridge(d=16, vocab=16), _text()
    ids = np.tile(np.arange(1, 13), (6, 1))
    model.W_E = torch.eye(16)
    model.mix = [torch.zeros(16, 16)] * 2
    model.W_U = 5 * torch.eye(16).roll(1, dims=1)  # token i predicts token i + 1
    dictionary = FakeDictionary(16, 16, 1, W_dec=torch.eye(16))
    e = ablation_effects(model, dictionary, HOOK, ids, rows)
    known = np.log(16) - np.log(1 + 15 * np.exp(-5))
    assert e.mean[1:11][e.n[1:11] > 0] == pytest.approx(known, abs=1e-5)


def test_positions_that_are_no_data_are_neither_ablated_nor_scored() -> None:
    model, (ids, rows) = FakeBridge(), _text()
    rows[:, 6:] = False
    e = ablation_effects(model, FakeDictionary(), HOOK, ids, rows)
    assert 0 < e.fired.sum() <= 6 * 5 * 4
    with pytest.raises(UsageError, match="--ablations 0"):
        ablation_effects(model, FakeDictionary(), HOOK, ids, rows, ablations=0)


def test_entries_of_a_pass_are_of_one_sequence_and_far_enough_apart() -> None:
    rng = np.random.default_rng(0)
    seq, pos = rng.integers(0, 5, 300), rng.integers(1, 128, 300)
    passes = packed(seq, pos)
    assert sorted(np.concatenate(passes).tolist()) == list(range(300))
    for p in passes:
        assert len(np.unique(seq[p])) == 1 and (np.diff(pos[p]) >= GAP).all()
    assert len(passes) < 300 / 3


def test_an_effect_is_held_against_latents_of_like_frequency_and_size() -> None:
    f = 60
    mean = np.where(np.arange(f) < 30, 0.1, 1.0)
    fired = np.where(np.arange(f) < 30, 50, 5000)
    mean[3], mean[40], mean[59] = 0.5, 0.5, np.nan
    n = np.where(np.arange(f) == 59, 0, 32)
    size = np.ones(f) + 0.001 * np.arange(f)
    nothing = np.full(f, np.nan)
    none = Estimate(float("nan"), None, None, 0, "tokens", "none")
    e = Effects(mean, nothing, nothing, n, size, fired, nothing, np.zeros(f, int), none)
    median, rank, peers = against_peers(e)
    assert (median[3], rank[3]) == (0.1, 1.0) and (median[40], rank[40]) == (1.0, 0.0)
    assert peers[3] == 20 and np.isnan(rank[59]) and peers[59] == 0
