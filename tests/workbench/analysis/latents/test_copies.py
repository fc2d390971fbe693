"""Top contexts show different texts where there are different texts, with a count beside each."""

from __future__ import annotations

import numpy as np

from workbench.analysis.latents.contexts import build, choose, texts_around
from workbench.analysis.latents.encoded import from_rows


def codes_of(tokens: np.ndarray, value: np.ndarray):
    """One latent whose value on every token is given; position 0 is no row."""
    n, t = tokens.shape
    seq, pos = np.repeat(np.arange(n), t - 1), np.tile(np.arange(1, t), n)
    flat = value[:, 1:].reshape(-1, 1).astype(np.float32)
    return from_rows(1, tokens[:, 1:].ravel(), seq, pos, flat, np.zeros_like(flat, int))


def test_copies_give_one_context_and_are_counted():
    rng = np.random.default_rng(0)
    texts = rng.integers(1, 90, (6, 40))
    tokens = texts[[0, 1, 0, 2, 0, 3, 4, 5, 1]]  # the first text three times, the second twice
    value = np.zeros(tokens.shape)
    value[np.arange(9), [20, 20, 20, 20, 20, 20, 20, 3, 20]] = [9, 8, 9.5, 7, 9.2, 6, 5, 4, 8.5]
    codes = codes_of(tokens, value)
    _, group, slot, row, n, copies = choose(codes, None, 5, rng)
    top = row[group == 0][np.argsort(slot[group == 0])]
    assert codes.seq[top].tolist() == [2, 8, 3, 5, 6]  # the strongest of each text, strongest texts first
    assert copies[0].tolist() == [3, 2, 1, 1, 1] and n[0, 0] == 9
    assert build(codes, None, k=8, window=16).top_copies[0].tolist() == [3, 2, 1, 1, 1, 1, 0, 0]


def test_equal_windows_at_other_places_are_the_same_text():
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 90, (2, 60))
    tokens[1, 25:55] = tokens[0, 10:40]  # the same passage, elsewhere in its sequence
    digests = texts_around(codes_of(tokens, np.ones(tokens.shape))).reshape(2, 59)
    assert digests[0, 27] == digests[1, 42] and len(np.unique(digests)) > 59 + 30
