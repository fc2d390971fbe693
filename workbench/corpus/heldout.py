"""Which documents are held out, so that none lies on both sides: by the digest of their text, copies together.

A store's last sequences are held out from training and must come from other documents than the rest. Documents stand in
the order of their digests, and the first of them, as many as the held-out windows need, are held out; so the same
documents are, whatever files come or go around them. A document that is a large part of its corpus (one file with
everything in it) is cut into sections first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sae.errors import UsageError
from workbench.corpus.sections import continues
from workbench.corpus.stream import TextStream

AlsoHeld = Callable[[str], bool]


def nowhere(digest: str) -> bool:
    """No text is held out elsewhere."""
    return False


def windows_in(tokens: int, length: int) -> int:
    """Windows that one pass over so many tokens gives (see :func:`workbench.corpus.mixture.text_windows`)."""
    return 0 if tokens < length else max((tokens - length) // length, 1)


def partition(
    stream: TextStream, heldout: int, length: int, *, also: AlsoHeld = nowhere
) -> tuple[TextStream, TextStream]:
    """(training, held-out) parts of a stream, the latter with at least ``heldout`` windows of ``length`` tokens.

    Args:
        also: of a text's digest, whether it is held out whatever is needed here: a corpus beside this one does so.

    Raises:
        UsageError: the documents cannot be parted so that both sides have a window.
    """
    sizes = np.diff(np.append(stream.starts, len(stream.tokens)))
    order = sorted(range(len(sizes)), key=lambda i: (stream.keys[i], i))
    held: list[int] = []
    tokens = 0
    for n, i in enumerate(order):
        copy = n > 0 and stream.keys[i] == stream.keys[order[n - 1]]
        if not heldout or (
            tokens >= (heldout + 2) * length and not copy
        ):  # two more: a stream is cut into windows at an offset
            break
        held.append(i)
        tokens += int(sizes[i])
    held += [i for i, digest in enumerate(stream.digests) if also(digest)]
    keys = {stream.keys[i] for i in held}
    chosen = np.array([key in keys for key in stream.keys], bool)
    tokens = int(sizes[chosen].sum())
    if windows_in(tokens, length) < heldout or windows_in(int(sizes[~chosen].sum()), length) < 1:
        raise UsageError(
            f"the corpus has {len(stream.tokens):,} tokens in {len(sizes):,} documents or sections, too few to hold"
            f" {heldout:,} windows of {length + 1} tokens out and train on others. Give more text, or a smaller n_seq"
            " or ctx."
        )
    return _part(stream, ~chosen), _part(stream, chosen)


def _part(stream: TextStream, chosen: np.ndarray) -> TextStream:
    """The chosen documents of a stream, as a stream; ``numbers`` keeps what they were called by before. A section whose
    predecessor is not chosen begins as a document does.
    """
    ends = np.append(stream.starts[1:], len(stream.tokens))
    which = np.flatnonzero(chosen)
    alone = [
        i > 0 and continues(stream.names[i - 1], stream.names[i]) and not chosen[i - 1] for i in which
    ]  # sections that begin a text here

    def gathered(values: np.ndarray, begin: Any) -> list[np.ndarray]:
        some = [values[stream.starts[i] : ends[i]] for i in which]
        if stream.first is None:
            return some
        return [np.append(values.dtype.type(begin), v) if a else v for v, a in zip(some, alone, strict=True)]

    pieces = gathered(stream.tokens, stream.first)
    tokens = np.concatenate(pieces or [stream.tokens[:0]])
    is_row = None if stream.is_row is None else np.concatenate(gathered(stream.is_row, False) or [stream.is_row[:0]])
    starts = np.cumsum([0, *(len(p) for p in pieces[:-1])], dtype=np.int64)
    return replace(
        stream,
        tokens=tokens,
        is_row=is_row,
        starts=starts,
        names=tuple(stream.names[i] for i in which),
        keys=tuple(stream.keys[i] for i in which),
        digests=tuple(stream.digests[i] for i in which),
        numbers=which.astype(np.int64),
    )
