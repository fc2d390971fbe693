"""Documents as one token stream, kept on disk between processes where tokenising is slow."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import UserError
from sae.files import sha256_json, write_bytes
from workbench.config import cache_dir
from workbench.corpus.config import SUFFIXES, CorpusConfig
from workbench.corpus.documents import documents, local_files
from workbench.corpus.records import Tally

_WORTH_CACHING = 1_000_000  # tokens; fewer are tokenised faster than they are worth a file


@dataclass(frozen=True)
class TextStream:
    """All documents of one split as one token stream, each document preceded by BOS.

    ``tokens`` int32 [n]; ``starts`` int64 [documents], ascending; ``names`` one per document; ``digest`` of names and
    texts; ``records``: what was left out or mended (see :meth:`workbench.corpus.records.Tally.about`).
    """

    tokens: np.ndarray
    starts: np.ndarray
    names: tuple[str, ...]
    digest: str
    records: dict[str, Any] = field(default_factory=dict)

    def document(self, position: int | np.ndarray) -> np.ndarray:
        """Index of the document that a stream position lies in."""
        return np.searchsorted(self.starts, position, side="right") - 1


def text_stream(config: CorpusConfig, tokenizer: Any) -> TextStream:
    """Tokenise one split of a corpus. Remembered within the process for the same configuration, files and tokenizer."""
    source = config.model_copy(update={"seed": 0, "tiled_share": 0, "snippet_share": 0, "agreement_share": 0})
    files = local_files(config) if config.kind in SUFFIXES else ()
    return _stream(source, Held(tokenizer), tuple((str(f), (s := f.stat()).st_size, s.st_mtime_ns) for f, _ in files))


class Held:
    """A tokenizer as a hashable key: equal where the vocabularies are."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.key = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and other.key == self.key


@lru_cache(maxsize=4)
def _stream(config: CorpusConfig, held: Held, files: tuple[tuple[str, int, int], ...]) -> TextStream:
    tally = Tally(config.on_bad)
    docs = documents(config, tally)
    digest = sha256_json([[n, hashlib.sha256(t.encode("utf-8", "replace")).hexdigest()] for n, t in docs])
    cached = cache_dir() / f"tokens-{sha256_json([digest, held.key])[:32]}.npz"
    tokens, starts = _read_cached(cached) or _tokenise(docs, held.tokenizer, cached)
    return TextStream(tokens, starts, tuple(n for n, _ in docs), digest, tally.about())


def _tokenise(docs: list[tuple[str, str]], tokenizer: Any, cached: Path) -> tuple[np.ndarray, np.ndarray]:
    bos, pieces = bos_id(tokenizer), []
    for at in range(0, len(docs), 256):  # transformers' own result is some 50 times larger than the ids
        for ids in tokenizer([t for _, t in docs[at : at + 256]], add_special_tokens=False)["input_ids"]:
            pieces.append(np.asarray([bos, *ids], np.int32))
    tokens = np.concatenate(pieces)
    starts = np.cumsum([0, *(len(p) for p in pieces[:-1])], dtype=np.int64)
    if len(tokens) > _WORTH_CACHING:
        buffer = io.BytesIO()
        np.savez(buffer, tokens=tokens, starts=starts)
        with suppress(OSError, UserError):  # a full or read-only home only costs the next process some seconds
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(cached, buffer.getvalue())
    return tokens, starts


def _read_cached(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """A cached token stream; None where there is none or it is damaged (it is then made again)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["tokens"], arrays["starts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def bos_id(tokenizer: Any) -> int:
    """The id that starts every window: the tokenizer's BOS, else its EOS (as Pythia and GPT-2 do), else 0."""
    for name in ("bos_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    return 0


def frequencies(stream: TextStream, vocab: int) -> np.ndarray:
    """Token probabilities float64 [vocab] of a stream, its BOS tokens not counted."""
    counts = np.bincount(stream.tokens, minlength=vocab).astype(np.float64)
    counts[stream.tokens[0]] = 0
    return counts / counts.sum()
