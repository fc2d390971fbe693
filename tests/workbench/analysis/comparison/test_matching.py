"""Planted matches are found, one-to-one versions are one-to-one, and layers pool correctly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp

from workbench.analysis.comparison.depth import best_over, depth_map, even_candidates, match_layers, shifted_rows
from workbench.analysis.comparison.matching import assign, mutual, pooled_candidates
from workbench.analysis.correlation import max_pairwise_correlation


def sparse_codes(rng: np.random.Generator, n: int, f: int) -> np.ndarray:
    density = np.exp(rng.uniform(np.log(5e-3), np.log(5e-2), f))
    return (rng.random((n, f)) < density) * rng.lognormal(0, 1, (n, f))


def planted(n: int = 30_000, f: int = 300, seed: int = 0) -> tuple[sp.csr_matrix, sp.csr_matrix, np.ndarray]:
    """Half of a's latents recur in b: permuted, 20 % of firings dropped, 5 % spurious, lognormal noise of sigma 0.3."""
    rng = np.random.default_rng(seed)
    a, b = sparse_codes(rng, n, f), sparse_codes(rng, n, f)
    truth = np.full(f, -1)
    shared, slots = rng.permutation(f)[: f // 2], rng.permutation(f)[: f // 2]
    truth[shared] = slots
    for i, j in zip(shared, slots, strict=True):
        on = np.flatnonzero(a[:, i])
        kept = on[rng.random(len(on)) >= 0.2]
        b[:, j] = 0
        b[kept, j] = a[kept, i] * rng.lognormal(0, 0.3, len(kept))
        spurious = rng.integers(0, n, max(1, int(0.05 * len(on))))
        b[spurious, j] = rng.lognormal(0, 1, len(spurious))
    return sp.csr_matrix(a), sp.csr_matrix(b), truth


@pytest.mark.parametrize("how", ["mutual best", "assignment"])
def test_planted_matches_are_recovered(how: str) -> None:
    a, b, truth = planted()
    m = max_pairwise_correlation(a, b, min_firings=50, top=20)
    level = 0.3
    found = (
        mutual(m.partner, m.r, m.reverse.partner, level=level)
        if how == "mutual best"
        else assign(m.candidates, m.candidates_r, b.shape[1], level=level)
    )
    eligible = (a != 0).sum(0).A1 >= 50
    claimed = found.partner >= 0
    right = claimed & (found.partner == truth)
    assert right.sum() / claimed.sum() >= 0.99
    assert right[eligible & (truth >= 0)].mean() >= 0.99


def test_two_unrelated_rare_latents_do_not_become_a_match() -> None:
    """Neither alone nor among real ones: the pair that coincides once is left out by the minimum of firings."""
    a, b, _ = planted(n=5000, f=60, seed=1)
    a, b = a.tolil(), b.tolil()
    a[:, 0] = 0
    b[:, 0] = 0
    a[77, 0] = b[77, 0] = 5.0
    m = max_pairwise_correlation(a.tocsr(), b.tocsr(), min_firings=30, top=20)
    for found in (
        mutual(m.partner, m.r, m.reverse.partner, level=0.3),
        assign(m.candidates, m.candidates_r, 60, level=0.3),
    ):
        assert found.partner[0] == -1 and 0 not in found.partner


def test_assignment_is_the_best_one_to_one() -> None:
    rng = np.random.default_rng(0)
    r = rng.uniform(-0.5, 1, (5, 5))
    found = assign(np.tile(np.arange(5), (5, 1)), r, 5, level=0.2)
    gains = np.maximum(r - 0.2, 0)
    best = max(sum(gains[i, p[i]] for i in range(5)) for p in itertools.permutations(range(5)))
    made = found.partner >= 0
    assert np.sum(found.r[made] - 0.2) == pytest.approx(best)
    assert len(set(found.partner[made])) == made.sum() and (found.r[made] > 0.2).all()
    assert (assign(np.full((3, 2), -1), np.full((3, 2), np.nan), 4).partner == -1).all()


def test_layers_pool_to_the_same_as_one_wide_side() -> None:
    rng = np.random.default_rng(2)
    a = {i: sp.csr_matrix(sparse_codes(rng, 4000, 20)) for i in range(2)}
    b = {i: sp.csr_matrix(sparse_codes(rng, 4000, 15)) for i in range(3)}
    layers = match_layers(a, b, top=6)
    wide = max_pairwise_correlation(
        sp.hstack(list(a.values()), format="csr"), sp.hstack(list(b.values()), format="csr"), top=6
    )
    best = layers.best_a()
    np.testing.assert_allclose(np.concatenate([x.r for x in best]), wide.r, atol=1e-12)
    assert (np.concatenate([x.layer * 15 + x.partner for x in best]) == wide.partner).all()
    np.testing.assert_allclose(np.concatenate([x.second_r for x in best]), wide.second_r, atol=1e-12)
    assert (np.concatenate([x.n_cofire for x in best]) == wide.n_cofire).all()
    back = layers.best_b()
    np.testing.assert_allclose(np.concatenate([x.r for x in back]), wide.reverse.r, atol=1e-12)  # type: ignore[union-attr]
    ids, values, _, offsets_b = pooled_candidates(layers, top=6)
    assert (ids == wide.candidates).all() and offsets_b.tolist() == [0, 15, 30, 45]
    np.testing.assert_allclose(values, wide.candidates_r, atol=1e-12)
    assert layers.map().shape == (2, 3)
    assert layers.map()[1, 2] == pytest.approx(layers.pairs[1, 2].r.mean())


def test_even_candidates_gives_both_directions_as_many() -> None:
    rng = np.random.default_rng(3)
    a = {i: sp.csr_matrix(sparse_codes(rng, 3000, 20)) for i in range(2)}
    b = {i: sp.csr_matrix(sparse_codes(rng, 3000, 20)) for i in range(4)}
    layers = match_layers(a, b)
    only_a, only_b = even_candidates(layers, seed=0)
    assert sum(map(len, only_a.values())) == sum(map(len, only_b.values())) == 40
    even = match_layers(a, b, only_a=only_a, only_b=only_b)
    for i, x in enumerate(even.best_a()):
        assert np.isin(x.partner[x.layer == 1], only_b[1]).all()
        assert (x.r[only_a[i]] <= layers.best_a()[i].r[only_a[i]] + 1e-12).all()


def test_depth_map_of_planted_layers_is_diagonal() -> None:
    rng = np.random.default_rng(4)
    a = {i: sparse_codes(rng, 4000, 30) for i in range(3)}
    b = {i: sp.csr_matrix(a[i] * (rng.random(a[i].shape) > 0.1)) for i in range(3)}
    layers = match_layers({i: sp.csr_matrix(x) for i, x in a.items()}, b)
    d = depth_map(layers.best_a(), 3, level=0.5, n_boot=50)
    assert (d.counts == 30 * np.eye(3)).all() and d.n == 90
    assert d.rank_correlation == pytest.approx(1) and d.interval[0] > 0.99
    none = depth_map(layers.best_a(), 3, level=1.1, n_boot=50)
    assert none.n == 0 and np.isnan(none.rank_correlation)


def test_token_shift_pairs_stay_inside_sequences_and_find_a_planted_delay() -> None:
    seq, pos = np.repeat([0, 1, 2], 500), np.tile(np.arange(1, 501), 3)
    ta, tb = shifted_rows(seq, pos, 2)
    assert len(ta) == 3 * 498 and (tb - ta == 2).all() and (seq[ta] == seq[tb]).all()
    rng = np.random.default_rng(5)
    a = sparse_codes(rng, 1500, 10)
    b = sp.csr_matrix(np.roll(a, 1, axis=0))  # b says at t + 1 what a says at t
    a_csr = sp.csr_matrix(a)
    mean = {
        s: max_pairwise_correlation(a_csr[x], b[y]).r.mean()
        for s in (-2, -1, 0, 1, 2)
        for x, y in [shifted_rows(seq, pos, s)]
    }
    assert max(mean, key=mean.__getitem__) == 1 and mean[1] == pytest.approx(1)


def test_best_over_prefers_the_earlier_layer_on_ties_and_keeps_nan() -> None:
    x = sp.csr_matrix(sparse_codes(np.random.default_rng(6), 1000, 8))
    zero = sp.csr_matrix((1000, 8))
    m = max_pairwise_correlation(x, x)
    best = best_over([max_pairwise_correlation(x, zero), m, m])
    assert (best.layer == 1).all() and (best.second_layer == 2).all() and (best.partner == np.arange(8)).all()
    dead = best_over([max_pairwise_correlation(zero, x)])
    assert np.isnan(dead.r).all() and (dead.layer == -1).all()
