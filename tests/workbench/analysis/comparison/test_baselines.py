"""Nulls keep what they promise to keep; neurons equal numpy; quantiles sit in the right bins."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sae.errors import UsageError
from workbench.analysis.comparison.baselines import (
    difference,
    firing_bins,
    interval,
    null_by_bin,
    per_latent,
    permuted,
    random_codes,
    rotated,
)
from workbench.analysis.comparison.neurons import DenseSums, match_neurons
from workbench.analysis.correlation import max_pairwise_correlation


def test_permutation_and_rotation_keep_densities_and_destroy_matches() -> None:
    rng = np.random.default_rng(0)
    n, seq = 6000, np.repeat(np.arange(60), 100)
    a = sp.csr_array((rng.random((n, 30)) < 0.05) * rng.random((n, 30)))
    for null in (permuted(a, rng), rotated(a, seq, rng)):
        assert sorted(null.data) == sorted(a.data)
        assert (np.diff(null.tocsc().indptr) == np.diff(a.tocsc().indptr)).all()
        assert max_pairwise_correlation(a, a).r.min() > 0.999 > 0.2 > max_pairwise_correlation(a, null).r.max()
    moved = rotated(sp.csr_array(np.arange(1, n + 1)[:, None]), seq, rng, at_least=5).toarray()[:, 0]
    by = int(moved[0]) - 1
    assert by % 100 == 0 and 500 <= by <= n - 500 and (moved == np.roll(np.arange(1, n + 1), -by)).all()
    with pytest.raises(UsageError, match="there are 60"):
        rotated(a, seq, rng, at_least=30)


def test_random_encoder_fires_as_often_as_asked() -> None:
    x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 16) + 5
    wanted = np.array([0.0, 0.001, 0.02, 0.3, 1.0])
    codes = random_codes(x, wanted, generator=torch.Generator().manual_seed(1))
    assert (np.diff(codes.tocsc().indptr) == np.round(wanted * 2000)).all() and (codes.data > 0).all()
    assert (random_codes(x, wanted, generator=torch.Generator().manual_seed(1)) != codes).nnz == 0


def test_null_bins_are_joined_until_they_hold_enough() -> None:
    fired = np.array([0] * 5 + [3] * 10 + [40] * 100 + [5000] * 40 + [100_000] * 2)
    edges = firing_bins(fired, 30)
    held = np.histogram(fired[fired > 0], edges)[0]
    assert (held >= 30).all() and held.sum() == 152 and edges[-1] > 100_000
    null = np.where(fired == 40, 0.5, 0.1)
    q = null_by_bin(null, fired, edges, (0.99,))[:, 0]
    got = per_latent(q, fired, edges)
    assert (
        np.isnan(got[fired == 0]).all()
        and (got[fired == 40] == 0.5).all()
        and (got[fired == 5000] == pytest.approx(0.1))
    )
    assert firing_bins(np.zeros(3, int)).tolist() == [1, 2]


def test_intervals_cover_and_order() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0.5, 1, 2000)
    x[:5] = np.nan
    low, high = interval(x, rng=rng)
    assert low < 0.5 < high and high - low < 0.12
    mean, lo, hi = difference(x, x + 0.1, paired=True, rng=rng)
    assert mean == pytest.approx(0.1) and lo == pytest.approx(0.1) and hi == pytest.approx(0.1)
    mean, lo, hi = difference(x, x + 0.1, paired=False, rng=rng)
    assert lo < 0.1 < hi and hi - lo > 0.05
    assert np.isnan(interval(np.array([1.0]), rng=rng)).all()


def test_dense_sums_equal_numpy_with_large_means_and_constants() -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((3000, 12)) + 100).astype(np.float32)
    y = (0.7 * x[:, :7] + rng.standard_normal((3000, 7))).astype(np.float32)
    x[:, 3] = 2.0
    sums = DenseSums()
    for lo in range(0, 3000, 700):
        sums.add(torch.from_numpy(x[lo : lo + 700]), torch.from_numpy(y[lo : lo + 700]))
    r = sums.correlation()
    with np.errstate(all="ignore"):
        want = np.corrcoef(x.astype(np.float64), y.astype(np.float64), rowvar=False)[:12, 12:]
    assert np.isnan(r[3]).all()
    np.testing.assert_allclose(np.delete(r, 3, 0), np.delete(want, 3, 0), atol=1e-5)


def test_neurons_of_all_layers_whatever_the_memory() -> None:
    rng = np.random.default_rng(2)
    base = rng.standard_normal((1200, 20))
    a = [
        torch.from_numpy((base[:, :8] + 0.1 * rng.standard_normal((1200, 8))).astype(np.float32)),
        torch.randn(1200, 5, generator=torch.Generator().manual_seed(0)),
    ]
    b = [
        torch.randn(1200, 6, generator=torch.Generator().manual_seed(1)),
        torch.from_numpy(base[:, 7::-1].astype(np.float32).copy()),
    ]

    def blocks(layers: list[torch.Tensor]):  # type: ignore[no-untyped-def]
        return lambda which: ([layers[i][lo : lo + 500] for i in which] for lo in range(0, 1200, 500))

    results = [match_neurons(blocks(a), [8, 5], blocks(b), [6, 8], product_bytes=size) for size in (1, 2**30)]
    for forward, backward in results:
        assert (
            (forward[0].layer == 1).all()
            and (forward[0].partner == np.arange(7, -1, -1)).all()
            and (forward[0].r > 0.98).all()
        )
        assert (backward[1].partner == np.arange(7, -1, -1)).all() and (forward[1].r < 0.2).all()
        assert (forward[0].second_r < 0.2).all() and (forward[0].n_cofire == 1200).all()
    np.testing.assert_allclose(results[0][0][1].r, results[1][0][1].r, atol=1e-6)
