"""Token windows whose held-out part comes from documents of its own.

Windows of one stream share documents: what is held out was, in part, seen in training. Here whole documents are set
aside first, in the order of a digest of their names, until they hold as many windows as are wanted.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from sae.errors import UsageError
from workbench.corpus.config import CorpusConfig
from workbench.corpus.mixture import text_windows
from workbench.corpus.stream import TextStream, text_stream


def windows_apart(
    config: CorpusConfig, tokenizer: Any, *, n: int, heldout: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``n`` windows, of which the last ``heldout`` come from documents the others do not touch: (tokens int32
    [n, length] without BOS, documents int32 [n], kinds uint8 [n], all text).

    Raises:
        UsageError: the corpus has too little text, or too few documents, for windows that share nothing.
    """
    stream = text_stream(config, tokenizer)
    ends = np.append(stream.starts[1:], len(stream.tokens))
    aside: list[int] = []
    held = 0
    for i in sorted(range(len(stream.names)), key=lambda i: hashlib.sha256(stream.names[i].encode()).digest()):
        if held >= (heldout + 2) * length:  # two more: a stream is cut into windows at an offset
            break
        aside.append(i)
        held += int(ends[i] - stream.starts[i])
    kept = sorted(set(range(len(stream.names))) - set(aside))
    parts = []
    for documents, wanted in ((kept, n - heldout), (sorted(aside), heldout)):
        part = _only(stream, documents, ends)
        there = max((len(part.tokens) - length) // length, 0)
        if there < wanted:
            raise UsageError(
                f"the {config.kind!r} corpus has {len(stream.tokens):,} tokens in {len(stream.names)} documents: too"
                f" little for {n} windows of {length + 1}, the last {heldout} of them from documents of their own. Take"
                " more text, or a smaller n_seq."
            )
        tokens, at = text_windows(part, np.arange(wanted), length, config.seed)
        parts.append((tokens, np.asarray(documents, np.int32)[at]))
    tokens, docs = (np.concatenate(p) for p in zip(*parts, strict=True))
    return tokens, docs, np.zeros(n, np.uint8)


def _only(stream: TextStream, documents: list[int], ends: np.ndarray) -> TextStream:
    """The stream of some of its documents, in order."""
    pieces = [stream.tokens[stream.starts[i] : ends[i]] for i in documents]
    starts = np.cumsum([0, *(len(p) for p in pieces[:-1])], dtype=np.int64)
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
    return TextStream(tokens, starts, tuple(stream.names[i] for i in documents), stream.digest)
