"""Emergence tables, and the nulls that keep their orderings honest."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.analysis.evolution import emergence as em


def planted(rng: np.random.Generator, births: np.ndarray, S: int = 12) -> np.ndarray:
    """Norms of latents that are small before their birth and stay afterwards, with noise."""
    on = np.arange(S)[:, None] >= births[None, :]
    return (on * rng.uniform(0.8, 1.0, (S, len(births))) + 0.02).astype(np.float32)


def test_table_names_steps_and_missing_values():
    steps = [0, 1, 4, 16]
    norms = np.array([[1, 0.0, 0], [1, 0.2, 0], [1, 2, 0], [1, 2, 0]])
    t = em.emergence_table(norms, steps, n_fired=[5, 0, 0])
    assert t["emergence_0.5_step"].tolist()[:2] == [0, 4] and t["emergence_0.5_step"].isna().tolist() == [
        False,
        False,
        True,
    ]
    assert t["class"].tolist() == ["initialisation", "emergent", "never"]
    assert t["alive"].tolist() == [True, False, False]
    assert t["decay_step"].isna().all()
    with pytest.raises(ValueError, match="3 steps"):
        em.emergence_table(norms, steps[:3])


def test_planted_order_is_found_and_shuffled_order_is_not():
    rng = np.random.default_rng(0)
    early, late = rng.integers(1, 4, 60), rng.integers(7, 10, 60)
    norms = planted(rng, np.concatenate([early, late]))
    first = np.arange(120) < 60
    null = em.snapshot_null(em.emergence_gap(first, ~first), norms, n=500)
    assert null.n == 500 and null.observed >= 4 and null.outside and null.p < 0.05
    shuffled = norms[np.random.default_rng(3).permutation(len(norms))]
    assert not em.snapshot_null(em.emergence_gap(first, ~first), shuffled, n=500).outside


def test_null_mean_is_not_zero_when_lifespans_differ():
    """First crossing follows lifespan: long-lived latents cross earlier under any labels, and the null must show it."""
    rng = np.random.default_rng(1)
    long, short = np.full(50, 2), np.full(50, 10)
    norms = planted(rng, np.concatenate([long, short]))
    first = np.arange(100) < 50
    null = em.snapshot_null(em.emergence_gap(first, ~first), norms, n=500)
    assert null.mean > 1.5, "the null of first crossings is far from zero here"


def test_class_null_and_intervals():
    rng = np.random.default_rng(2)
    e = np.concatenate([rng.integers(0, 5, 80), rng.integers(4, 9, 80)])
    a = np.arange(160) < 80
    assert em.class_null(e, a, ~a).p < 0.01
    assert em.class_null(rng.permutation(e), a, ~a, seed=1).p > 0.01
    gap = em.median_gap(e[a], e[~a])
    assert gap.low > 0 and gap.low <= gap.value <= gap.high and gap.n == 160
    assert np.isnan(em.median_gap([], e).value)


def test_partial_correlation_removes_the_confounder():
    rng = np.random.default_rng(3)
    z = rng.normal(size=600)
    x, y = z + 0.5 * rng.normal(size=600), z + 0.5 * rng.normal(size=600)
    assert em.partial_spearman(x, y, n=200).low > 0.6
    given = em.partial_spearman(x, y, z, n=200)
    assert given.low < 0 < given.high
    assert em.partial_spearman(x, -x, z, n=200).value < -0.9
