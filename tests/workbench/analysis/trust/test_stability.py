"""Stability of top contexts on text whose halves are known."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.analysis.latents.encoded import from_rows
from workbench.analysis.trust.stability import stability

SEQUENCES, LENGTH, VOCAB = 24, 12, 400


def _fired(fires: list[dict[int, int]]) -> tuple[np.ndarray, ...]:
    """Text of random tokens in which latent i fires at position 2 + 4 i of sequence s where ``fires[i]`` has s, with
    that token put there.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(100, VOCAB, (SEQUENCES, LENGTH))
    codes = np.zeros((SEQUENCES, LENGTH, len(fires)), np.float32)
    for i, where in enumerate(fires):
        for s, token in where.items():
            ids[s, 2 + 4 * i] = token
            codes[s, 2 + 4 * i, i] = 1 + s
    seq, pos = (a.ravel() for a in np.indices((SEQUENCES, LENGTH)))
    return ids.ravel(), seq, pos, codes.reshape(-1, len(fires))


def test_same_token_in_both_halves_different_ones_one_half_alone_and_never() -> None:
    every = range(SEQUENCES)
    fires = [dict.fromkeys(every, 5), {s: 7 if s % 2 else 8 for s in every}, {s: 9 for s in every if s % 2}]
    ids, seq, pos, dense = _fired(fires)
    values = np.concatenate([dense, np.zeros((len(dense), 1), np.float32)], axis=1)
    indices = np.tile(np.arange(4), (len(dense), 1))
    found = stability(from_rows(4, ids, seq, pos, values, indices))
    assert found.cosine[0] > 0.4 and found.cosine[0] > found.chance[0]
    assert found.cosine[1] < 0.2  # what is ahead of it is chance
    assert found.cosine[2] == 0 and found.n[2] == 0
    assert np.isnan(found.cosine[3]) and np.isnan(found.chance[3])
    assert found.n[:2].tolist() == [12, 12]


def test_the_very_same_contexts_have_cosine_one() -> None:
    ids = np.tile(np.arange(10, 22), 6)
    seq, pos = np.repeat(np.arange(6), 12), np.tile(np.arange(12), 6)
    values = (pos == 5).astype(np.float32)[:, None]
    found = stability(from_rows(1, ids, seq, pos, values, np.zeros((72, 1), int)))
    assert found.cosine[0] == pytest.approx(1) and found.n[0] == 3 and np.isnan(found.chance[0])
