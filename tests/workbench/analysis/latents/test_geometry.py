"""Geometry on directions whose neighbours, families and chance levels are known."""

import numpy as np
import pytest
import torch

from sae.errors import UsageError
from workbench.analysis.latents.geometry import chance, cosine_histogram, density_grid, families, umap_layout
from workbench.analysis.latents.neighbours import nearest


def directions(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_nearest_agrees_with_the_full_matrix_in_blocks():
    a, b = directions(70, 9), directions(50, 9, 1)
    unit = torch.nn.functional.normalize
    full = unit(a) @ unit(b).T
    ids, cosines = nearest(a, b, 5, block=16)
    np.testing.assert_allclose(cosines, full.topk(5).values, atol=1e-6)
    own = (unit(a) @ unit(a).T).fill_diagonal_(-9)
    np.testing.assert_array_equal(nearest(a, n=1, block=16)[0][:, 0], own.argmax(1))
    ids, cosines = nearest(a[:3], n=5)
    assert (ids[:, 2:] == -1).all() and np.isnan(cosines[:, 2:]).all(), "three rows have two neighbours each"
    assert np.isfinite(nearest(torch.zeros(3, 4), n=2)[1]).all(), "a zero row is nobody's direction, and no NaN"


def test_chance_equals_the_distribution_of_unrelated_directions():
    """Real directions drawn the baseline's way are indistinguishable from it; the known value for d=128, F=1024 is
    about 0.285.
    """
    W = directions(1024, 128)
    c = chance(W, directions(1024, 128, 5))
    real = nearest(directions(1024, 128, 7), directions(1024, 128, 8), 1)[1][:, 0]
    assert np.median(c.cosines["isotropic"]) == pytest.approx(np.median(real), abs=0.005) and np.median(
        real
    ) == pytest.approx(0.285, abs=0.015)
    assert c.threshold("isotropic") > np.quantile(real, 0.99)


def test_the_matched_baseline_knows_that_directions_share_few_dimensions():
    W = directions(512, 64) * torch.cat([torch.full((4,), 10.0), torch.ones(60)])
    c = chance(W)
    real = np.median(nearest(W, n=1)[1])
    assert np.median(c.cosines["matched"]) == pytest.approx(real, abs=0.02)
    assert np.median(c.cosines["isotropic"]) < real - 0.2


def test_families_recover_planted_splits_and_leave_newcomers_alone():
    narrow = directions(40, 64)
    g = torch.Generator().manual_seed(3)
    planted = np.repeat(np.arange(40), 3)
    wide = torch.cat([narrow[planted] + 0.4 * torch.randn(120, 64, generator=g), directions(30, 64, 11)])
    children, parents = families(narrow, wide)
    np.testing.assert_array_equal(children["parent"][:120], planted)
    assert (children["parent"][120:] == -1).mean() > 0.95
    assert (parents["n_children"] == 3).mean() > 0.9 and (parents["best_cosine"] > 0.8).all()
    assert 0 < children["threshold"].iloc[0] < 0.75
    with pytest.raises(UsageError, match="width 64 and 8"):
        families(narrow, directions(50, 8))
    with pytest.raises(UsageError, match="must not be the wider"):
        families(wide, narrow)


def test_histogram_counts_everything_once():
    W = directions(200, 16)
    table = cosine_histogram(nearest(W, n=1)[1][:, 0], chance(W, draws=2))
    assert table.groupby("series")["count"].sum().to_dict() == {"decoder": 200, "isotropic": 400, "matched": 400}
    assert (table.groupby("series")["n"].first() == table.groupby("series")["count"].sum()).all()


@pytest.mark.slow
def test_the_map_puts_clusters_apart_and_repeats_itself():
    centres = 3 * directions(3, 16)
    W = centres.repeat_interleave(30, 0) + 0.3 * directions(90, 16, 1)
    xy = umap_layout(W, seed=4)
    np.testing.assert_array_equal(xy, umap_layout(W, seed=4))
    label = np.repeat(np.arange(3), 30)
    within = max(np.linalg.norm(xy[label == i] - xy[label == i].mean(0), axis=1).mean() for i in range(3))
    apart = min(np.linalg.norm(xy[label == i].mean(0) - xy[label == j].mean(0)) for i in range(3) for j in range(i))
    assert apart > 2 * within
    with pytest.raises(UsageError, match="at least 4"):
        umap_layout(W[:3])


def test_density_grid_holds_every_point():
    points = np.random.default_rng(0).normal(size=(500, 2))
    counts, edges = density_grid(points, 16)
    assert counts.sum() == 500 and edges.shape == (2, 17) and edges[0, 0] == pytest.approx(points[:, 0].min())
