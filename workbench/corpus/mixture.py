"""The endless mixture of windows: text, repeated chunks, copied snippets, agreement; each a pure function of its
number.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from sae.errors import UsageError
from workbench.corpus.config import CorpusConfig, Split
from workbench.corpus.stream import Held, TextStream, files_of, frequencies, text_stream
from workbench.corpus.synthetic import AGREEMENT, REPEATS, TEXT, agreement_window, snippet_window, tiled_window


def text_windows(stream: TextStream, index: np.ndarray, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows number ``index`` of an endless sequence: (tokens int32 [n, length] without the leading BOS, document of
    each).

    Each epoch cuts the stream into blocks at a new offset and shuffles them, so no two windows of an epoch overlap.

    Raises:
        UsageError: the text is shorter than one window. It is never padded: padding would be trained on.
    """
    there = len(stream.tokens)
    if there < length:
        raise UsageError(
            f"the corpus has {there:,} tokens, fewer than one window of {length:,}. Give more text, or a"
            " smaller ctx; short text is not padded."
        )
    blocks = max((there - length) // length, 1)
    out, docs = np.zeros((len(index), length), np.int32), np.zeros(len(index), np.int32)
    for i, n in enumerate(index):
        order, offset = _epoch(blocks, min(length, max(there - blocks * length, 1)), seed, int(n) // blocks)
        at = offset + int(order[int(n) % blocks]) * length
        out[i], docs[i] = stream.tokens[at : at + length], stream.document(at)
    return out, docs


@lru_cache(maxsize=8)
def _epoch(blocks: int, offsets: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng([seed, 101, epoch])
    return rng.permutation(blocks), int(rng.integers(offsets))


def synthetic_windows(
    kinds: np.ndarray, probabilities: np.ndarray, tokenizer: Any, length: int, rng: np.random.Generator, split: Split
) -> np.ndarray:
    """One window int32 [length] per entry of ``kinds`` (1 tiled, 2 snippets, 3 agreement), drawn from ``rng``."""
    out = np.zeros((len(kinds), length), np.int32)
    for i, kind in enumerate(kinds):
        if kind == 1:
            out[i] = tiled_window(probabilities, length, rng)
        elif kind == 2:
            out[i] = snippet_window(probabilities, length, rng)
        else:
            out[i] = agreement_window(tokenizer, length, rng, split)
    return out


def mixed_windows(
    config: CorpusConfig,
    tokenizer: Any,
    *,
    first: int,
    n: int,
    length: int,
    stream: TextStream | None = None,
    text_from: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows ``first`` … ``first + n`` of the mixture: (tokens int32 [n, length] without BOS, documents int32, kinds
    uint8).

    Every window is a pure function of (configuration, tokenizer, its number, ``length``).

    Args:
        stream: the text, where it is not all of the configuration's. text_from: window that takes the first of its
            blocks.
    """
    whole = text_stream(config, tokenizer)
    stream = whole if stream is None else stream
    shares = np.cumsum([1 - config.synthetic_share, config.tiled_share, config.snippet_share, config.agreement_share])
    tokens, docs, kinds = np.zeros((n, length), np.int32), np.zeros(n, np.int32), np.zeros(n, np.uint8)
    probabilities = _probabilities(config, tokenizer) if config.synthetic_share else None
    for i, number in enumerate(range(first, first + n)):
        rng = np.random.default_rng([config.seed, 7, number])
        kind = int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
        if kind == 0:
            tokens[i], docs[i : i + 1] = (
                part[0] for part in text_windows(stream, np.asarray([number - text_from]), length, config.seed)
            )
        else:
            assert probabilities is not None
            tokens[i] = synthetic_windows(np.asarray([kind]), probabilities, tokenizer, length, rng, config.split)[0]
            docs[i] = len(whole.names) + number
        kinds[i] = (TEXT, REPEATS, REPEATS, AGREEMENT)[kind]
    return tokens, docs, kinds


def _probabilities(config: CorpusConfig, tokenizer: Any) -> np.ndarray:
    return _train_probabilities(config.model_copy(update={"split": "train"}), Held(tokenizer), files_of(config))


@lru_cache(maxsize=4)
def _train_probabilities(config: CorpusConfig, held: Held, files: tuple[tuple[str, int, int], ...]) -> np.ndarray:
    return frequencies(text_stream(config, held.tokenizer), len(held.tokenizer))
