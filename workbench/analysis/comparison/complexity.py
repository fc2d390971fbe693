"""How complex and how monosemantic a latent is, by proxies that need no language model.

- *complexity* = 1 - the share of the latent's variance that a lookup in the current token, the previous one or both
  explains (:func:`workbench.analysis.evolution.taxonomy.lookup_explained`; fitted on one half of the sequences,
  measured on the other).
- *monosemanticity* = 1 - normalised entropy of the tokens among the latent's strongest tenth of firings. The
  distribution is estimated on one half of the sequences and scored as cross-entropy on the other, so that a latent seen
  on five different tokens does not count as five-fold monosemantic; 1 = one token, 0 = as mixed as the corpus' own
  tokens.

Both are estimates of what was published as one-to-five ratings by a large language model (arXiv 2410.06672); they
measure token dependence, which is one reason for a low rating and not the only one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sae.errors import UsageError
from workbench.analysis.evolution.taxonomy import lookup_explained
from workbench.analysis.latents.encoded import Codes

MIN_FIRED = 30
SMOOTHING = 0.5  # pseudo-count mass of the corpus distribution, in firings


def complexity_table(codes: Codes, vocab: int, *, min_fired: int = MIN_FIRED) -> pd.DataFrame:
    """One row per latent: v_token, v_previous, v_bigram, complexity, monosemanticity, n_fired; NaN below ``min_fired``
    firings.

    Raises:
        UsageError: fewer than two sequences (nothing to hold out).
    """
    sequences, index = np.unique(codes.seq, return_inverse=True)
    if len(sequences) < 2:
        raise UsageError(
            "complexity needs at least two sequences: one half fits, the other measures. Compare on more tokens."
        )
    text = np.zeros((len(sequences), int(codes.pos.max()) + 1), np.int64)
    text[index, codes.pos] = codes.ids
    table = lookup_explained(codes.matrix().tocsr(), text, index, codes.pos, vocab)
    explained = table[["v_token", "v_previous", "v_bigram"]].max(axis=1).clip(0, 1)
    enough = codes.n_fired >= min_fired
    table.loc[~enough] = np.nan
    table["complexity"] = np.where(enough, 1 - explained, np.nan)
    table["monosemanticity"] = np.where(enough, monosemanticity(codes, vocab), np.nan)
    table.insert(0, "latent", np.arange(codes.n_latents))
    table["n_fired"] = codes.n_fired
    return table


def monosemanticity(codes: Codes, vocab: int, *, top: float = 0.1) -> np.ndarray:
    """[F] held-out token concentration among the strongest ``top`` share of each latent's firings; NaN where a half has
    none.
    """
    strongest = _strongest(codes, top)
    corpus = (np.bincount(codes.ids, minlength=vocab) + 1e-3) / (len(codes.ids) + 1e-3 * vocab)
    half = np.unique(codes.seq, return_inverse=True)[1][codes.row[strongest]] % 2
    latent, token = codes.latent[strongest].astype(np.int64), codes.ids[codes.row[strongest]].astype(np.int64)
    scores = [
        _held_out(
            latent[half == a], token[half == a], latent[half == 1 - a], token[half == 1 - a], corpus, codes.n_latents
        )
        for a in (0, 1)
    ]
    return np.clip(np.mean(scores, axis=0), 0, 1)


def _strongest(codes: Codes, share: float) -> np.ndarray:
    """Entries in the top ``share`` of their latent by value, at least ten where there are ten."""
    order = np.lexsort((-codes.value, codes.latent))
    rank = np.arange(len(order)) - codes.indptr[codes.latent[order]]
    keep = rank < np.maximum(np.minimum(codes.n_fired, 10), np.ceil(share * codes.n_fired))[codes.latent[order]]
    return np.sort(order[keep])


def _held_out(
    latent: np.ndarray, token: np.ndarray, test_latent: np.ndarray, test_token: np.ndarray, corpus: np.ndarray, f: int
) -> np.ndarray:
    """1 - (cross-entropy of test tokens under the fitted distribution) / (the same under the corpus distribution)."""
    vocab = len(corpus)
    key, counts = np.unique(latent * vocab + token, return_counts=True)
    total = np.bincount(latent, minlength=f)
    test = test_latent * vocab + test_token
    at = np.searchsorted(key, test)
    at[at == len(key)] = 0
    seen = np.where(key[at] == test, counts[at], 0) if len(key) else np.zeros(len(test))
    p = (seen + SMOOTHING * corpus[test_token]) / (total[test_latent] + SMOOTHING)
    own = np.bincount(test_latent, -np.log(p), minlength=f)
    chance = np.bincount(test_latent, -np.log(corpus[test_token]), minlength=f)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((total > 0) & (chance > 0), 1 - own / chance, np.nan)
