"""Moments and histograms of positive activations, for all latents at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.analysis.latents.encoded import Codes

BINS = 64
SPAN = 1e-4  # the grid reaches from the largest activation down to this fraction of it


@dataclass(frozen=True)
class Moments:
    """Per latent, over the tokens on which it fires; NaN where too few firings define it (1 for mean, 2, 3, 4)."""

    n: np.ndarray  # [F] int64
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray  # population standard deviation
    skew: np.ndarray  # third standardised moment
    kurtosis: np.ndarray  # fourth standardised moment (3 for a normal distribution)


def moments(codes: Codes) -> Moments:
    """Central moments of positive activations in float64, two passes."""
    n, latent, f = codes.n_fired, codes.latent, codes.n_latents
    value = codes.value.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(latent, value, minlength=f) / n
        centred = value - mean[latent]
        square = centred * centred
        m2 = np.bincount(latent, square, minlength=f) / n
        m3 = np.bincount(latent, square * centred, minlength=f) / n
        m4 = np.bincount(latent, square * square, minlength=f) / n
        spread = m2 > (1e-6 * mean) ** 2  # a constant value has no shape
        skew = np.where(spread & (n >= 3), m3 / m2**1.5, np.nan)
        kurtosis = np.where(spread & (n >= 4), m4 / m2**2, np.nan)
    peak = np.full(f, np.nan)
    fired = n > 0
    if fired.any():
        peak[fired] = np.maximum.reduceat(codes.value, codes.indptr[:-1][fired])
    return Moments(n, peak, mean, np.where(n >= 2, np.sqrt(m2), np.nan), skew, kurtosis)


def log_histogram(codes: Codes, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """(counts [F, bins] uint32, edges [bins + 1] float32) on one log grid for the dictionary.

    The grid ends at the largest activation and starts at the smallest, but no lower than ``SPAN`` of the largest; the
    first bin also counts what is below it, so every row of counts sums to the latent's number of firings.
    """
    if len(codes.value) == 0:
        return np.zeros((codes.n_latents, bins), np.uint32), np.geomspace(SPAN, 1, bins + 1).astype(np.float32)
    top = float(codes.value.max())
    low = min(max(float(codes.value.min()), top * SPAN), top * 0.5)
    edges = np.geomspace(low, top, bins + 1).astype(np.float32)
    place = np.clip(np.searchsorted(edges, codes.value, side="right") - 1, 0, bins - 1)
    counts = np.bincount(codes.latent.astype(np.int64) * bins + place, minlength=codes.n_latents * bins)
    return counts.reshape(codes.n_latents, bins).astype(np.uint32), edges
