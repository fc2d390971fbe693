"""Found again: known twins are found, chance is chance, and rarer latents have a higher chance level."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from sae.errors import UsageError
from workbench.analysis.trust.found import found_again

N, LENGTH = 6000, 50


def _codes(rng: np.random.Generator, counts: np.ndarray) -> sp.csr_array:
    """[N, F] codes that fire on ``counts`` random tokens each."""
    dense = np.zeros((N, len(counts)), np.float32)
    for i, n in enumerate(counts):
        dense[rng.choice(N, n, replace=False), i] = rng.random(n).astype(np.float32) + 0.5
    return sp.csr_array(dense)


def test_a_twin_is_found_and_an_unrelated_latent_is_not() -> None:
    rng = np.random.default_rng(0)
    counts = np.repeat([40, 600], 40)
    own, other = _codes(rng, counts), _codes(rng, counts)
    order = rng.permutation(80)
    twins = sp.csr_array(sp.hstack([own[:, :10], other[:, 10:]], format="csr")[:, order])
    seq = np.arange(N) // LENGTH
    m = found_again(own, twins, seq, min_firings=20)
    assert np.allclose(m.r[:10], 1.0) and m.found[:10].all()
    assert (order[m.partner[:10]] == np.arange(10)).all() and (m.n_cofire[:10] == 40).all()
    assert not m.found[10:].any()
    assert (m.r[10:] > m.chance[10:]).mean() <= 0.1  # 1 % of them, but for luck

    rare, frequent = m.chance[:40], m.chance[40:]
    assert rare.min() > frequent.max() > 0  # a maximum over candidates is higher where few tokens decide


def test_a_latent_that_fires_too_seldom_has_no_number() -> None:
    rng = np.random.default_rng(1)
    own = _codes(rng, np.array([19, 20, *[200] * 40]))
    m = found_again(own, own, np.arange(N) // LENGTH, min_firings=20)
    assert np.isnan(m.r[0]) and m.partner[0] == -1 and not m.found[0]
    assert m.r[1] == pytest.approx(1)


def test_too_few_sequences_for_a_chance_level_are_refused() -> None:
    own = _codes(np.random.default_rng(2), np.array([200] * 4))
    with pytest.raises(UsageError, match=r"at least 3 sequences; there are 2"):
        found_again(own, own, np.arange(N) // (N // 2), min_firings=20)
