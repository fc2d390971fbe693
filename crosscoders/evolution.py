"""What a crosscoder over training snapshots says about each latent: when it appears, how long it lives, how it turns.

Everything here is computed from decoder arrays (numpy) and nothing else. Axes: S sources in training order, F latents,
D width. ``norms_SF`` are decoder norms in the scale the crosscoder trained in (:meth:`Crosscoder.decoder_norms`),
because raw norms also follow the growth of the residual stream.

The definitions are operational; where *Evolution of Concepts* (arXiv 2509.17196) gives a number it is used:

- relative norm   n_s / max_s n_s
- emergence       first source whose relative norm exceeds a threshold (0.5; 0.1 and 0.9 beside it)
- peak            argmax of the norm; decay: first source after the peak below the threshold
- lifespan        share of sources above the threshold
- initialisation  relative norm at the first source > 0.3; *emergent* < 0.1; the rest is called *early*
- rotation        1 - cosine, to the final source and between neighbours
- projection      <W_s, W_final> / |W_final|
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
THRESHOLDS = (0.1, 0.5, 0.9)
CLASSES = ("never", "initialisation", "early", "emergent")


def relative_norms(norms_SF: npt.ArrayLike) -> Array:
    """Norms divided by each latent's largest; NaN for a latent whose decoder is zero everywhere. Shape [S, F]."""
    n = np.asarray(norms_SF, dtype=np.float64)
    top = n.max(axis=0)
    return (n / np.where(top > 0, top, np.nan)).astype(np.float32)


def first_above(relative_SF: Array, threshold: float) -> Ints:
    """Index of the first source above ``threshold`` for each latent; -1 where there is none. Shape [F]."""
    above = np.asarray(relative_SF) > threshold
    return np.where(above.any(axis=0), above.argmax(axis=0), -1).astype(np.int64)


def peak(relative_SF: Array) -> Ints:
    """Index of the source with the largest norm (the first of equals); -1 for a zero latent. Shape [F]."""
    r = np.asarray(relative_SF)
    return np.where(np.isnan(r).all(axis=0), -1, np.nan_to_num(r, nan=-1.0).argmax(axis=0)).astype(np.int64)


def lifespan(relative_SF: Array, threshold: float = 0.5) -> Array:
    """Share of sources above ``threshold``, in [0, 1]. Shape [F]."""
    return (np.asarray(relative_SF) > threshold).mean(axis=0).astype(np.float32)


def decay(relative_SF: Array, threshold: float = 0.5) -> Ints:
    """First source after the peak whose relative norm is below ``threshold``; -1 where the latent stays. Shape [F]."""
    r = np.asarray(relative_SF)
    below_after = (r < threshold) & (np.arange(len(r))[:, None] > peak(r)[None, :])
    return np.where(below_after.any(axis=0), below_after.argmax(axis=0), -1).astype(np.int64)


def classify(relative_SF: Array) -> npt.NDArray[np.str_]:
    """One of :data:`CLASSES` per latent, by its relative norm at the first source. Shape [F]."""
    r0 = np.asarray(relative_SF)[0]
    names = np.where(r0 > 0.3, "initialisation", np.where(r0 < 0.1, "emergent", "early"))
    return np.where(np.isnan(r0), "never", names)


def cosine_matrices(blocks: Sequence[npt.ArrayLike]) -> Array:
    """Cosines between a latent's decoder rows at every pair of sources. ``blocks``: S arrays [F, D] -> [F, S, S].

    A zero row has no direction: its cosines are NaN, never 0.
    """
    W_SFD = np.stack([np.asarray(b, dtype=np.float32) for b in blocks])
    norm_SF1 = np.linalg.norm(W_SFD, axis=-1, keepdims=True)
    unit_FSD = (W_SFD / np.where(norm_SF1 > 0, norm_SF1, np.nan)).transpose(1, 0, 2)
    return np.clip(unit_FSD @ unit_FSD.transpose(0, 2, 1), -1.0, 1.0).astype(np.float32)


def projections(blocks: Sequence[npt.ArrayLike]) -> Array:
    """Length of each source's decoder row along the final one's direction, <W_s, W_final>/|W_final|. Shape [S, F]."""
    W_SFD = np.stack([np.asarray(b, dtype=np.float32) for b in blocks])
    norm_F = np.linalg.norm(W_SFD[-1], axis=-1)
    return (np.einsum("sfd,fd->sf", W_SFD, W_SFD[-1]) / np.where(norm_F > 0, norm_F, np.nan)).astype(np.float32)


@dataclass(frozen=True)
class TurningPoint:
    """The split of the snapshots into *before* and *after* that the decoder directions themselves suggest.

    ``index`` is the first source of the second group, -1 where nothing can be said; ``contrast`` = mean cosine within
    the groups minus mean cosine between them; ``contrasts`` holds it for every admissible split (NaN elsewhere).
    """

    index: int
    contrast: float
    contrasts: npt.NDArray[np.float64]


def split_contrasts(cosine_SS: npt.ArrayLike, *, min_group: int = 2) -> npt.NDArray[np.float64]:
    """For every split s (groups [0, s) and [s, S)): mean cosine within groups minus between. ``cosine`` [..., S, S] ->
    [..., S].

    Groups smaller than ``min_group`` are not admitted, since a single odd snapshot (step 0) would always win.
    """
    cos = np.asarray(cosine_SS, dtype=np.float64)
    S = cos.shape[-1]
    out = np.full((*cos.shape[:-2], S), np.nan)
    off = ~np.eye(S, dtype=bool)
    for s in range(min_group, S - min_group + 1):
        same = np.zeros((S, S), dtype=bool)
        same[:s, :s] = same[s:, s:] = True
        out[..., s] = cos[..., same & off].mean(-1) - cos[..., ~same].mean(-1)
    return out


def turning_point(cosine_SS: npt.ArrayLike, *, min_group: int = 2) -> TurningPoint:
    """Best two-group split of a cosine matrix [S, S] (one latent's, or the mean over latents)."""
    contrasts = split_contrasts(cosine_SS, min_group=min_group)
    if np.isnan(contrasts).all():
        return TurningPoint(-1, float("nan"), contrasts)
    best = int(np.nanargmax(contrasts))
    return TurningPoint(best, float(contrasts[best]), contrasts)


def turning_points(cosines_FSS: Array, *, min_group: int = 2) -> Ints:
    """:func:`turning_point` index of every latent; -1 where a zero row leaves it undefined. Shape [F]."""
    contrasts = split_contrasts(cosines_FSS, min_group=min_group)
    undefined = np.isnan(contrasts).all(axis=-1)
    return np.where(undefined, -1, np.nan_to_num(contrasts, nan=-np.inf).argmax(axis=-1)).astype(np.int64)


def dimensionality(block_FD: npt.ArrayLike, *, chunk: int = 2048) -> npt.NDArray[np.float64]:
    """Feature dimensionality D_i = |W_i|^2 / sum_j (unit(W_i) . W_j)^2 of every latent of one source; NaN for zero
    rows.

    Source: Elhage et al. 2022, *Toy Models of Superposition*. A latent alone on its direction has 1, one of m latents
    on the same direction 1/m. The sum over latents, divided by the width, is the share of the space in use.
    """
    W = np.asarray(block_FD, dtype=np.float64)
    norm = np.linalg.norm(W, axis=1)
    unit = W / np.where(norm > 0, norm, np.nan)[:, None]
    gram = W.T @ W  # [D, D]: sum_j (u . W_j)^2 = u' (W'W) u, so no [F, F] matrix is needed
    crowd = np.concatenate(
        [np.einsum("fd,de,fe->f", u, gram, u, optimize=True) for u in np.split(unit, range(chunk, len(unit), chunk))]
    )
    return norm**2 / crowd


def total_dimensionality(block_FD: npt.ArrayLike) -> float:
    """Share of the space in use at one source: sum of :func:`dimensionality` over latents with a decoder, over the
    width.
    """
    W = np.asarray(block_FD)
    return float(np.nansum(dimensionality(W)) / W.shape[1])
