"""From the space of A's decoder to that of B's, by the decoders of matched latents.

A latent's direction says nothing in another model: the two have bases of their own. What both share are pairs of
latents that fire alike, so the map is the linear one that takes the directions of A's to those of B's, fitted by ridge
regression over matched pairs. It is cross-fitted: latents of A fall into folds, and a latent is mapped by what was
fitted without its fold. So a pair never shows the map its own answer, and a partner that fires alike but writes
something else is mapped to what it writes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sae.errors import UsageError

FOLDS = 10
LEAST = 20  # pairs from which a map is fitted at all
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # in units of the mean square of an input direction's coordinates

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DecoderMap:
    """Decoder directions in B's space.

    Attributes:
        images: [F_A, d_B] of A's unit decoder rows. returned: [F_B, d_B] B's own unit rows, sent into A's space and
            back with the maps of their partner's fold: what a map loses of the right answer itself (rows of latents
            without a partner are as they are).
        n_pairs: pairs it was fitted on. ridge: the strength that predicted left-out pairs best; None: the two spaces
            are one, and nothing is mapped. cosine: mean cosine of left-out images with what they should be.
    """

    images: Floats
    returned: Floats
    n_pairs: int
    ridge: float | None
    cosine: float


def same_space(rows_a: Floats, rows_b: Floats) -> DecoderMap:
    """For two dictionaries of one place in one model."""
    return DecoderMap(unit(rows_a), unit(rows_b), 0, None, float("nan"))


def fit_map(
    rows_a: Floats,
    rows_b: Floats,
    partner: NDArray[np.int64],
    latent: NDArray[np.int64],
    matched: NDArray[np.bool_],
    *,
    seed: int = 0,
) -> DecoderMap:
    """Fit the map over the matched ones of the pairs (partner of A, latent of B).

    Args:
        rows_a, rows_b: [F, d] decoder rows. partner, latent: [n] pairs. matched: [n] those that may be learnt from.

    Raises:
        UsageError: too few matched pairs.
    """
    if matched.sum() < LEAST:
        raise UsageError(
            f"{int(matched.sum())} matched pairs are too few to carry directions from one model to the other (at least"
            f" {LEAST}). Compare wider dictionaries, or layers that are more alike."
        )
    a, b = unit(rows_a), unit(rows_b)
    fold = np.random.default_rng([seed, 2]).permutation(len(a)) % FOLDS
    x, y, held = a[partner[matched]], b[latent[matched]], fold[partner[matched]]
    ridge = min(RIDGES, key=lambda s: _left_out_error(x, y, held, s))
    there = {k: _ridge(x[held != k], y[held != k], ridge) for k in range(FOLDS)}
    back = {k: _ridge(y[held != k], x[held != k], ridge) for k in range(FOLDS)}
    images, returned = np.empty((len(a), b.shape[1])), b.copy()
    for k in range(FOLDS):
        images[fold == k] = a[fold == k] @ there[k]
        of = latent[fold[partner] == k]
        returned[of] = b[of] @ back[k] @ there[k]
    cosine = np.einsum("nd,nd->n", unit(images[partner[matched]]), y)
    return DecoderMap(images, returned, int(matched.sum()), ridge, float(cosine.mean()))


def unit(rows: Floats) -> Floats:
    """Rows of length one; zero rows stay."""
    rows = np.asarray(rows, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def _ridge(x: Floats, y: Floats, strength: float) -> Floats:
    gram = x.T @ x
    return np.linalg.solve(gram + strength * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ y)


def _left_out_error(x: Floats, y: Floats, fold: NDArray[np.int64], strength: float) -> float:
    return sum(
        float(np.square(x[fold == k] @ _ridge(x[fold != k], y[fold != k], strength) - y[fold == k]).sum())
        for k in range(FOLDS)
    )
