"""Trajectory quantities from hand-made decoders whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from crosscoders import evolution as ev


@pytest.fixture
def norms() -> np.ndarray:
    #      always, born at 2, dies at 2, zero, small at first
    return np.array([[2, 0, 4, 0, 0.2], [2, 0.2, 4, 0, 0.6], [2, 6, 1, 0, 1], [2, 8, 0, 0, 1]], dtype=np.float32)


def test_thresholds_classes_and_lifespan(norms):
    r = ev.relative_norms(norms)
    assert ev.first_above(r, 0.5).tolist() == [0, 2, 0, -1, 1]
    assert ev.first_above(r, 0.9).tolist() == [0, 3, 0, -1, 2]
    assert ev.peak(r).tolist() == [0, 3, 0, -1, 2]
    assert ev.decay(r).tolist() == [-1, -1, 2, -1, -1]
    assert ev.lifespan(r).tolist() == [1.0, 0.5, 0.5, 0.0, 0.75]
    assert ev.classify(r).tolist() == ["initialisation", "emergent", "initialisation", "never", "early"]
    assert np.isnan(r[:, 3]).all(), "a latent without decoder has no relative norm"


def test_cosines_projection_and_turning_point():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 64)).astype(np.float32)
    blocks = [a, 2 * a, 3 * a, b, 2 * b, b]
    cos = ev.cosine_matrices(blocks)
    assert np.allclose(cos[:, 0, 1], 1, atol=1e-6) and np.allclose(cos, cos.transpose(0, 2, 1))
    assert (ev.turning_points(cos) == 3).all()
    point = ev.turning_point(cos.mean(0))
    assert point.index == 3 and point.contrast > 0.8
    assert np.allclose(ev.projections(blocks)[4], 2 * np.linalg.norm(b, axis=1), rtol=1e-5)
    zero = ev.cosine_matrices([a, 0 * a])
    assert np.isnan(zero[:, 0, 1]).all() and np.allclose(zero[:, 0, 0], 1)


def test_dimensionality_counts_sharing():
    eye = np.eye(8)
    assert np.allclose(ev.dimensionality(eye), 1) and ev.total_dimensionality(eye) == pytest.approx(1)
    twice = np.concatenate([eye, eye, np.zeros((3, 8))])
    d = ev.dimensionality(twice, chunk=5)
    assert np.allclose(d[:16], 0.5) and np.isnan(d[16:]).all()
    brute = np.random.default_rng(1).normal(size=(40, 8))
    unit = brute / np.linalg.norm(brute, axis=1, keepdims=True)
    assert np.allclose(ev.dimensionality(brute), (brute**2).sum(1) / ((unit @ brute.T) ** 2).sum(1))
    assert ev.total_dimensionality(brute) <= 1 + 1e-9
