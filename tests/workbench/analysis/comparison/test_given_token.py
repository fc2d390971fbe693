"""Given the token: the sparse identity against codes whose mean per token was really taken out."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from workbench.analysis.comparison.given_token import TokenCells, TokenConditionalSide
from workbench.analysis.correlation import correlate, max_pairwise_correlation

SEQUENCES, LENGTH, TYPES = 40, 50, 12


def world(seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    ids = np.minimum(rng.geometric(0.2, SEQUENCES * LENGTH), TYPES) + 100
    return ids, np.repeat(np.arange(SEQUENCES) + 7, LENGTH), rng


def codes(ids: np.ndarray, rng: np.random.Generator, n: int, shared: np.ndarray | None = None) -> np.ndarray:
    """[N, n] sparse codes that depend on the token, on a shared hidden cause (the first half), and on chance."""
    affinity = rng.random((TYPES + 101, n)) ** 6
    x = (rng.random((len(ids), n)) < affinity[ids]) * rng.lognormal(0, 0.3, (len(ids), n))
    if shared is not None:
        x[:, : n // 2] += shared[:, None] * rng.uniform(0.5, 2, n // 2)
    return x


def residual(x: np.ndarray, cells: TokenCells) -> np.ndarray:
    """x minus the mean of the token in the other half of the sequences, the long way round."""
    x = x[cells.rows]
    means = np.stack([x[cells.cell == g].mean(0) for g in range(cells.n_cells)])
    return x - means[cells.other[cells.cell]]


def test_equals_the_correlation_of_codes_minus_their_token_means() -> None:
    ids, seq, rng = world(0)
    ids[3], ids[700] = 990, 991  # tokens that occur once have no mean in the other half
    hidden = (rng.random(len(ids)) < 0.05) * rng.lognormal(0, 0.5, len(ids))
    a, b = codes(np.minimum(ids, 112), rng, 30, hidden), codes(np.minimum(ids, 112), rng, 22, hidden)
    a[:, 4] = ids - 99  # the token and nothing else: nothing is left of it
    a[:, 5] = 0
    cells = TokenCells.of(ids, seq)
    assert len(cells.rows) == len(ids) - 2 and cells.size.min() >= 1
    sides = [TokenConditionalSide(sp.csr_array(x[cells.rows]), cells, "x", 5) for x in (a, b)]
    found = correlate(*sides, workers=1)
    x, y = residual(a, cells), residual(b, cells)
    with np.errstate(all="ignore"):
        r = np.corrcoef(x, y, rowvar=False)[:30, 30:]
    r[x.std(0) < 1e-9] = np.nan
    alive = np.flatnonzero(np.isfinite(r).all(1) & ((a[cells.rows] > 0).sum(0) >= 5))
    assert len(alive) > 20 and np.isfinite(found.r).sum() == len(alive)
    np.testing.assert_allclose(found.r[alive], r[alive].max(1), atol=1e-9)
    assert (found.partner[alive] == r[alive].argmax(1)).all()
    np.testing.assert_allclose(found.reverse.r, r[alive].max(0), atol=1e-9)  # type: ignore[union-attr]
    assert (
        found.n_cofire[alive] == ((a[cells.rows] > 0)[:, alive] & (b[cells.rows] > 0)[:, found.partner[alive]]).sum(0)
    ).all()


def test_what_only_the_token_explains_is_high_raw_and_nothing_given_it() -> None:
    """Injected and destroyed: token detectors agree raw and not given the token; a shared cause is there in both."""
    ids, seq, rng = world(1)
    noise = rng.lognormal(0, 0.1, (2, len(ids), TYPES))
    detectors = [(ids[:, None] == 101 + np.arange(TYPES)) * n for n in noise]
    cells = TokenCells.of(ids, seq)
    assert len(cells.rows) == len(ids)
    order = cells.exchanged(rng)
    assert (ids[order] == ids).all() and (np.sort(order) == np.arange(len(ids))).all() and (order != cells.rows).any()

    def read(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        xa, xb = sp.csr_array(a), sp.csr_array(b)

        def given(x: sp.csr_array) -> TokenConditionalSide:
            return TokenConditionalSide(x, cells, "x", 1)

        return {
            "raw": float(max_pairwise_correlation(xa, xb).r.mean()),
            "same-token": float(max_pairwise_correlation(xa, xb[order]).r.mean()),
            "token-conditional": float(correlate(given(xa), given(xb)).r.mean()),
            "null": float(correlate(given(xa), given(xb[order])).r.mean()),
        }

    alone = read(*detectors)
    assert alone["raw"] > 0.9 and alone["same-token"] == pytest.approx(alone["raw"], abs=0.02)
    assert alone["token-conditional"] == pytest.approx(alone["null"], abs=0.03) and alone["token-conditional"] < 0.15
    cause = (rng.random((len(ids), TYPES)) < 0.05) * 3.0  # one cause per latent, whatever the token
    both = read(*(d + cause for d in detectors))
    assert both["token-conditional"] > 0.9 > 0.6 > both["same-token"] and both["null"] < 0.15


def test_no_token_twice_leaves_no_rows() -> None:
    cells = TokenCells.of(np.arange(60), np.repeat(np.arange(6), 10))
    assert len(cells.rows) == 0 and cells.n_cells == 0
