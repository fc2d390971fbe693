"""The correlation engine against float64 brute force, on codes chosen to be awkward."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp

from sae.errors import NonFiniteError, UsageError
from workbench.analysis.correlation import Match, max_pairwise_correlation, merge

N, FA, FB = 3000, 60, 45


def awkward(seed: int, n_latents: int) -> np.ndarray:
    """Dense [N, F] codes: log-uniform densities, then rare, dense, duplicate, constant and disjoint latents."""
    rng = np.random.default_rng(seed)
    density = np.exp(rng.uniform(np.log(2e-3), np.log(0.3), n_latents))
    x = (rng.random((N, n_latents)) < density) * rng.lognormal(0, 1, (N, n_latents))
    x[:, 0] = 0  # never fires
    x[:, 1] = 3.7  # fires always, always the same: constant
    x[:, 2] = 1000 + rng.standard_normal(N)  # large mean: cancels if not centred
    x[:, 3] = 1e4 + rng.standard_normal(N)
    x[rng.integers(0, N, 5), 3] = 0  # nearly always on, with a few zeros
    x[:, 4] = 0
    x[17, 4] = 2.0  # fires once
    x[:, 5] = x[:, 6]  # duplicates: the smaller index is the partner
    x[:, 7] = np.abs(rng.standard_normal(N))  # dense
    return x


def brute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.corrcoef(a, b, rowvar=False)[: a.shape[1], a.shape[1] :]


def check(m: Match, r: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    r = r.copy()
    r[a.std(0) < 1e-9] = np.nan
    r[:, b.std(0) < 1e-9] = np.nan
    alive = ~np.isnan(r).all(axis=1)
    assert np.isnan(m.r[~alive]).all() and (m.partner[~alive] == -1).all() and (m.n_cofire[~alive] == 0).all()
    np.testing.assert_allclose(m.r[alive], np.nanmax(r[alive], axis=1), atol=1e-6, rtol=0)
    rows = np.flatnonzero(alive)
    np.testing.assert_allclose(r[rows, m.partner[rows]], m.r[rows], atol=1e-6, rtol=0)  # the partner has that r
    two = np.sort(np.where(np.isnan(r[rows]), -np.inf, r[rows]), axis=1)[:, -2]
    np.testing.assert_allclose(m.second_r[rows], two, atol=1e-6, rtol=0)
    together = (a[:, rows] > 0) & (b[:, m.partner[rows]] > 0)
    assert (m.n_cofire[rows] == together.sum(0)).all()
    assert (m.n_fired == (a != 0).sum(0)).all()


@pytest.mark.parametrize("how", ["mkl", "scipy", "one thread", "blocks", "float32", "coo"])
def test_equals_numpy_corrcoef_in_both_directions(how: str) -> None:
    a, b = awkward(0, FA), awkward(1, FB)
    if how == "float32":
        a, b = a.astype(np.float32), b.astype(np.float32)
    xa, xb = sp.csr_matrix(a), sp.csr_array(b)
    if how == "coo":
        xa = xa.tocoo()
    options: dict = {"one thread": {"workers": 1}, "scipy": {"backend": "scipy"}}.get(how, {"workers": 2})
    if how == "blocks":
        spans = list(itertools.pairwise([0, 700, 701, 2000, N]))
        m = max_pairwise_correlation([xa[s:e] for s, e in spans], [xb[s:e] for s, e in spans], workers=2)
    else:
        m = max_pairwise_correlation(xa, xb, **options)
    r = brute(a.astype(np.float64), b.astype(np.float64))
    check(m, r, a, b)
    assert m.reverse is not None
    check(m.reverse, r.T, b, a)


def test_best_partner_that_never_cofires() -> None:
    a = np.zeros((100, 1))
    a[:60, 0] = 1.0
    b = np.zeros((100, 3))
    b[60:, 0], b[70:, 1], b[99:, 2] = 1.0, 2.0, 3.0
    m = max_pairwise_correlation(sp.csr_matrix(a), sp.csr_matrix(b))
    assert m.partner[0] == 2 and m.n_cofire[0] == 0
    assert m.r[0] == pytest.approx(np.corrcoef(a[:, 0], b[:, 2])[0, 1], abs=1e-12)
    assert m.r[0] < 0 and m.second[0] == 1


def test_duplicates_go_to_the_smallest_index_and_one_candidate_has_no_second() -> None:
    rng = np.random.default_rng(3)
    x = sp.random_array((500, 8), density=0.1, rng=rng, format="csr")
    twice = sp.hstack([x, x], format="csr")
    m = max_pairwise_correlation(x, twice)
    assert (m.partner == np.arange(8)).all() and (m.second == np.arange(8) + 8).all()
    np.testing.assert_allclose(m.second_r, 1, atol=1e-12)
    single = max_pairwise_correlation(x, x[:, :1])
    assert np.isnan(single.second_r).all() and (single.second == -1).all()


def test_minimum_firings_and_the_trap_of_rare_latents() -> None:
    """Two unrelated latents that fire once, together, have r = 1 by arithmetic; a minimum of firings removes them."""
    rng = np.random.default_rng(0)
    a = (rng.random((5000, 20)) < 0.02) * rng.random((5000, 20))
    b = (rng.random((5000, 20)) < 0.02) * rng.random((5000, 20))
    a[:, 4] = b[:, 9] = 0
    a[123, 4] = b[123, 9] = 1.0
    xa, xb = sp.csr_matrix(a), sp.csr_matrix(b)
    assert max_pairwise_correlation(xa, xb).r[4] == pytest.approx(1)
    m = max_pairwise_correlation(xa, xb, min_firings=30)
    assert np.isnan(m.r[4]) and m.partner[4] == -1 and 9 not in m.partner
    assert np.isnan(m.reverse.r[9]) and np.isfinite(m.r[np.arange(20) != 4]).all()  # type: ignore[union-attr]


def test_row_ranges_merge_to_the_whole_and_workers_do_not_matter() -> None:
    xa, xb = sp.csr_matrix(awkward(4, FA)), sp.csr_matrix(awkward(5, FB))
    whole = max_pairwise_correlation(xa, xb, workers=1, top=4)
    parts = [max_pairwise_correlation(xa, xb, workers=2, rows=(lo, lo + 25), top=4) for lo in range(0, FA, 25)]
    joined = merge(parts)
    for x, y in ((whole, joined), (whole.reverse, joined.reverse)):
        for name in ("r", "partner", "n_cofire", "second_r", "second", "n_fired"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name), err_msg=name)
    np.testing.assert_array_equal(whole.candidates, joined.candidates)


def test_candidates_are_the_best_ones_in_order() -> None:
    a, b = awkward(6, FA), awkward(7, FB)
    m = max_pairwise_correlation(sp.csr_matrix(a), sp.csr_matrix(b), top=5)
    r = brute(a, b)
    r[:, b.std(0) < 1e-9] = np.nan
    assert m.candidates is not None and m.candidates_r is not None
    for i in np.flatnonzero(np.isfinite(m.r)):
        np.testing.assert_allclose(m.candidates_r[i], np.sort(r[i][np.isfinite(r[i])])[::-1][:5], atol=1e-6)
    assert (m.candidates[0] == -1).all() and np.isnan(m.candidates_r[0]).all()


def test_bad_input_says_what_is_wrong() -> None:
    x = sp.random_array((50, 4), density=0.5, rng=np.random.default_rng(0), format="csr")
    with pytest.raises(UsageError, match="same tokens: 50 in 1 blocks against 49"):
        max_pairwise_correlation(x, x[:49])
    with pytest.raises(UsageError, match="not ndarray"):
        max_pairwise_correlation(x.toarray(), x)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'gpu'"):
        max_pairwise_correlation(x, x, backend="gpu")
    y = x.copy()
    y.data[0] = np.nan
    with pytest.raises(NonFiniteError, match=r"codes_b.*token 0"):
        max_pairwise_correlation(x, y)


def test_empty_sides_are_all_nan() -> None:
    x = sp.random_array((50, 4), density=0.5, rng=np.random.default_rng(0), format="csr")
    m = max_pairwise_correlation(x, sp.csr_array((50, 3)))
    assert np.isnan(m.r).all() and m.reverse is not None and np.isnan(m.reverse.r).all() and len(m.reverse.r) == 3
