"""An interpolated trigram model (Kneser–Ney), the baseline a miniature language model has to beat.

Chen & Goodman 1999, eq. 17 with one discount per order, estimated as n1 / (n1 + 2 n2). Lower orders use continuation
counts: in how many different contexts a token was seen, not how often.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Order:
    """One order: sorted n-gram keys (context · vocab + token), their counts, and per context total and
    number of types.
    """

    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    types: np.ndarray
    discount: float
    vocab: int

    @classmethod
    def of(cls, keys: np.ndarray, counts: np.ndarray, contexts: int, vocab: int) -> _Order:
        context = keys // vocab
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        totals = np.bincount(context, weights=counts, minlength=contexts)
        return cls(keys, counts, totals, np.bincount(context, minlength=contexts), discount, vocab)

    def probability(self, context: np.ndarray, token: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Discounted relative frequency plus the held-back mass times ``lower``; unseen contexts give ``lower``."""
        key = context * self.vocab + token
        at = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        count = np.where(self.keys[at] == key, self.counts[at], 0)
        total = np.maximum(self.totals[context], 1)
        p = (np.maximum(count - self.discount, 0) + self.discount * self.types[context] * lower) / total
        return np.where(self.totals[context] > 0, p, lower)


class InterpolatedTrigram:
    """``InterpolatedTrigram.fit(tokens, vocab)``, then :meth:`losses`."""

    def __init__(self, unigram: np.ndarray, bigram: _Order, trigram: _Order):
        self.unigram, self.bigram, self.trigram = unigram, bigram, trigram

    @classmethod
    def fit(cls, tokens: np.ndarray, vocab: int) -> InterpolatedTrigram:
        """Count a token stream (int [n])."""
        t = np.asarray(tokens, np.int64)
        keys3, counts3 = np.unique((t[:-2] * vocab + t[1:-1]) * vocab + t[2:], return_counts=True)
        keys2, counts2 = np.unique(keys3 % (vocab * vocab), return_counts=True)
        continuations = np.bincount(keys2 % vocab, minlength=vocab)
        unigram = (continuations + 0.5) / (continuations.sum() + 0.5 * vocab)
        return cls(unigram, _Order.of(keys2, counts2, vocab, vocab), _Order.of(keys3, counts3, vocab * vocab, vocab))

    def probabilities(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """P(c | a, b), elementwise over token ids."""
        second = self.bigram.probability(b, c, self.unigram[c])
        return self.trigram.probability(a * self.bigram.vocab + b, c, second)

    def losses(self, windows: np.ndarray) -> np.ndarray:
        """Losses in nats [n, length - 1] of predicting tokens 1 … of each window; the first has the window's start
        twice as context.
        """
        w = np.asarray(windows, np.int64)
        before = np.concatenate([w[:, :1], w[:, :-2]], axis=1)
        return -np.log(self.probabilities(before, w[:, :-1], w[:, 1:]))
