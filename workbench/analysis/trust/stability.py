"""Does a latent fire on the same kind of text in one half of the text as in the other?

The strongest contexts of either half (every other sequence) are written as weights of (place, token): the token at the
peak and the ``BEFORE`` ones ahead of it, rarer tokens weighing more (inverse document frequency). The number is the
cosine of the two halves; chance is the latent's first half with the second halves of the other latents. It sees tokens,
not meaning: a latent for an idea in many words scores low here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from workbench.analysis.correlation import Floats, Ints
from workbench.analysis.latents.encoded import Codes

TOP = 20  # contexts of a half, one per sequence
BEFORE = 3
QUANTILE = 0.95


@dataclass(frozen=True)
class Stability:
    """Arrays [F]: cosine of the halves (0 where one half has no context, NaN where neither has), its chance level, and
    contexts in the half that has fewer.
    """

    cosine: Floats
    chance: Floats
    n: Ints


def stability(codes: Codes) -> Stability:
    """Stability of the top contexts of every latent between the halves of the sequences."""
    half = np.unique(codes.seq, return_inverse=True)[1] % 2
    places = _places(codes)
    sides = [_profile(codes, half == h, places) for h in (0, 1)]
    counts = np.stack([n for _, n in sides])
    a, b = (x for x, _ in sides)
    cosines = (a @ b.T).toarray() if codes.n_latents <= 4096 else None
    own = np.asarray(a.multiply(b).sum(1)).ravel() if cosines is None else np.diag(cosines).copy()
    chance = np.full(codes.n_latents, np.nan)
    known = np.flatnonzero(counts.min(0) > 0)
    for i in known:
        row = (a[[i]] @ b.T).toarray()[0] if cosines is None else cosines[i]
        others = row[known[known != i]]
        chance[i] = np.quantile(others, QUANTILE) if len(others) else np.nan
    own[counts.max(0) == 0] = np.nan
    return Stability(own, chance, counts.min(0))


def _places(codes: Codes) -> np.ndarray:
    """[N, BEFORE + 1] number of (place, token) for each row: its own token and those ahead of it; -1 where there is
    none.
    """
    size = int(codes.ids.max()) + 1
    out = np.full((codes.n_tokens, BEFORE + 1), -1, np.int64)
    out[:, 0] = codes.ids
    for back in range(1, BEFORE + 1):
        same = (codes.seq[back:] == codes.seq[:-back]) & (codes.pos[back:] == codes.pos[:-back] + back)
        out[back:, back] = np.where(same, codes.ids[:-back] + back * size, -1)
    return out


def _profile(codes: Codes, inside: np.ndarray, places: np.ndarray) -> tuple[sp.csr_array, Ints]:
    """(unit profiles [F, places], contexts of each latent) of the rows ``inside``."""
    entry = np.flatnonzero(inside[codes.row])
    entry = entry[np.lexsort((-codes.value[entry], codes.seq[codes.row[entry]], codes.latent[entry]))]
    latent, seq = codes.latent[entry], codes.seq[codes.row[entry]]
    new = np.ones(len(entry), bool)
    new[1:] = (latent[1:] != latent[:-1]) | (seq[1:] != seq[:-1])
    peaks = entry[new]  # the strongest of each sequence
    peaks = peaks[np.lexsort((-codes.value[peaks], codes.latent[peaks]))]
    first = np.searchsorted(codes.latent[peaks], np.arange(codes.n_latents + 1))
    peaks = peaks[np.arange(len(peaks)) - first[codes.latent[peaks]] < TOP]
    counts = np.bincount(codes.latent[peaks], minlength=codes.n_latents)
    column = places[codes.row[peaks]]
    row = np.repeat(codes.latent[peaks], column.shape[1])
    there = column.ravel() >= 0
    width = (int(codes.ids.max()) + 1) * (BEFORE + 1)
    profile = sp.csr_array(
        (np.ones(int(there.sum())), (row[there], column.ravel()[there])), shape=(codes.n_latents, width)
    )
    seen = np.bincount(places[places >= 0], minlength=width)
    profile = profile @ sp.diags_array(np.log(codes.n_tokens / np.maximum(seen, 1)))
    length = np.sqrt(np.asarray(profile.multiply(profile).sum(1)).ravel())
    return sp.csr_array(sp.diags_array(1 / np.maximum(length, 1e-12)) @ profile), counts.astype(np.int64)
