"""Latents planted to follow each rule are classified as such."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from workbench.analysis.evolution import taxonomy as tx

V, N_SEQ, CTX = 20, 300, 48


@pytest.fixture(scope="module")
def world():
    """Random tokens, and codes of six latents: token, previous, bigram, context, noise, rare."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, V - 1, (N_SEQ, CTX))
    tokens[:, 0] = 0
    tokens[::3, 5] = 19  # a word that decides the context latent
    seq, pos = (a.ravel() for a in np.mgrid[0:N_SEQ, 1:CTX])
    now, before = tokens[seq, pos], tokens[seq, pos - 1]
    seen = np.array([19 in tokens[s, max(0, p - 24) : p] for s, p in zip(seq, pos, strict=True)])
    f = np.zeros((len(seq), 6), dtype=np.float32)
    f[:, 0] = (now == 3) * 2.0
    f[:, 1] = (before == 4) * 1.5
    f[:, 2] = (np.isin(before, (5, 8)) & (now == 6)) * 3.0
    f[:, 3] = ((now == 7) & seen & (rng.random(len(seq)) < 0.6)) * 1.0
    f[:, 4] = (rng.random(len(seq)) < 0.05) * rng.random(len(seq))
    f[:3, 5] = 1
    return tokens, seq, pos, sparse.csr_array(f)


def test_each_rule_finds_its_latent(world):
    tokens, seq, pos, codes = world
    t = tx.taxonomy(codes, tokens, seq, pos, V)
    assert t["class"].tolist() == ["token", "previous-token", "bigram", "context", "other", "rare"]
    assert t["complexity"][0] < 0.01 and t["complexity"][4] > 0.95
    assert t["v_bigram"][2] > 0.9 and t["v_token"][2] < 0.3
    assert "repeat_second" not in t


def test_lookup_is_judged_on_sequences_it_has_not_seen(world):
    """A latent that fires once per half on rare pairs must not look determined by them."""
    tokens, seq, pos, _ = world
    rng = np.random.default_rng(1)
    f = np.zeros((len(seq), 1), dtype=np.float32)
    f[rng.choice(len(seq), 60, replace=False)] = 1
    assert tx.lookup_explained(sparse.csr_array(f), tokens, seq, pos, V)["v_bigram"][0] < 0.05


def test_variance_explained_equals_a_dense_computation(world):
    tokens, seq, pos, codes = world
    dense, now, even = codes.toarray().astype(np.float64), tokens[seq, pos], seq % 2 == 0
    want = []
    for fit in (even, ~even):
        means = np.stack(
            [dense[fit & (now == v)].mean(0) if (fit & (now == v)).any() else dense[fit].mean(0) for v in range(V)]
        )
        left, y = dense[~fit] - means[now[~fit]], dense[~fit]
        variance = ((y - y.mean(0)) ** 2).sum(0)
        want.append(1 - (left**2).sum(0) / np.where(variance > 0, variance, np.nan))
    got = tx.lookup_explained(codes, tokens, seq, pos, V)["v_token"]
    assert np.allclose(got, np.mean(want, axis=0), atol=1e-9, equal_nan=True)


def test_induction_needs_the_first_copy(world):
    tokens, seq, pos, codes = world
    one = np.ones(6, dtype=np.float32)
    made = tx.RepeatMeans(
        first=0.1 * one, second=one, replaced=np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=np.float32), rate=one
    )
    found = tx.taxonomy(codes, tokens, seq, pos, V, repeats=made)
    assert found["class"][4] == "induction" and found["class"][0] == "token"
    kept = tx.RepeatMeans(first=0.1 * one, second=one, replaced=0.9 * one, rate=one)
    assert tx.taxonomy(codes, tokens, seq, pos, V, repeats=kept)["class"][4] == "other"


def test_repeat_probe_tokens():
    aa, ba = tx.repeat_tokens(np.ones(V) / V, n=5, length=6, bos=0, seed=3)
    assert (
        (aa[:, 1:7] == aa[:, 7:]).all()
        and (ba[:, 7:] == aa[:, 7:]).all()
        and (aa[:, 0] == 0).all()
        and (aa[:, 1:] != 0).all()
    )
    assert not (ba[:, 1:7] == ba[:, 7:]).all()
