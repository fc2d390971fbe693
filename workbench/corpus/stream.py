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

from sae.errors import UsageError, UserError
from sae.files import sha256_json, write_bytes
from workbench.config import cache_dir
from workbench.corpus.chat import check_roles, encoded, tally_for
from workbench.corpus.config import SUFFIXES, CorpusConfig
from workbench.corpus.contract import contract_of
from workbench.corpus.documents import digest_of, documents, local_files
from workbench.corpus.duplicates import first_copies
from workbench.corpus.sections import continues, text_digest
from workbench.run import long_step

_LAYOUT = 2  # of a stream: rises when the same texts and tokenizer give other tokens
_WORTH_CACHING = 1_000_000  # tokens; fewer are tokenised faster than they are worth a file


@dataclass(frozen=True)
class TextStream:
    """All documents of one split as one token stream, each preceded by the contract's first token, where it has one; a
    section that goes on where the one before ends is not.

    ``tokens`` int32 [n]; ``starts`` int64 [documents], ascending; ``names`` one per document; ``digest`` of names and
    texts; ``records``: what was left out or mended (see :meth:`workbench.corpus.records.Tally.about`); ``keys`` one per
    document, equal for copies of one text; ``digests`` of each document's own text; ``numbers`` of the documents in the
    whole corpus, where this is a part of it; ``copies``: near-duplicates among them; ``is_row`` bool [n]: which tokens
    may be rows, where a corpus asks for the words of some roles only.
    """

    tokens: np.ndarray
    starts: np.ndarray
    names: tuple[str, ...]
    digest: str
    records: dict[str, Any] = field(default_factory=dict)
    first: int | None = None
    keys: tuple[str, ...] = ()
    numbers: np.ndarray | None = None
    copies: int = 0
    is_row: np.ndarray | None = None
    digests: tuple[str, ...] = ()

    def document(self, position: int | np.ndarray) -> np.ndarray:
        """Number of the document that a stream position lies in."""
        at = np.searchsorted(self.starts, position, side="right") - 1
        return at if self.numbers is None else self.numbers[at]


def text_stream(config: CorpusConfig, tokenizer: Any) -> TextStream:
    """Tokenise one split of a corpus. Remembered within the process for the same configuration, files and tokenizer."""
    source = config.model_copy(
        update={"seed": 0, "tiled_share": 0, "snippet_share": 0, "agreement_share": 0, "epochs": 1}
    )
    return _stream(source, Held(tokenizer), files_of(config))


def files_of(config: CorpusConfig) -> tuple[tuple[str, int, int], ...]:
    """(path, bytes, time of change) of a corpus' local files: the part of a key that changes when they do."""
    files = local_files(config) if config.kind in SUFFIXES else ()
    return tuple((str(f), (s := f.stat()).st_size, s.st_mtime_ns) for f, _ in files)


class Held:
    """A tokenizer as a hashable key: equal where everything is that decides which tokens a text becomes."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.key = tokenizer_key(tokenizer)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and other.key == self.key


def tokenizer_key(tokenizer: Any) -> str:
    """Digest of a whole tokenizer: normaliser, pre-tokeniser, vocabulary, merges, post-processor and added tokens as
    they are written to a file, and what transformers decides beside it (class, special tokens, how they are read in a
    text).

    Truncation and padding are left out: a call sets them, and a corpus is tokenised without.
    """
    around = {
        "class": type(tokenizer).__name__,
        "special": {k: str(v) for k, v in getattr(tokenizer, "special_tokens_map", {}).items()},
        "chat_template": str(getattr(tokenizer, "chat_template", None) or ""),
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        own = backend.to_str()
        if backend.truncation is not None or backend.padding is not None:
            own = sha256_json({k: v for k, v in json.loads(own).items() if k not in ("truncation", "padding")})
    else:  # a tokenizer in Python has no file; what it is made from
        options = {k: str(v) for k, v in getattr(tokenizer, "init_kwargs", {}).items() if "path" not in k}
        own = json.dumps([sorted(tokenizer.get_vocab().items()), sorted(options.items())], ensure_ascii=False)
    return sha256_json([around, hashlib.sha256(own.encode("utf-8", "surrogatepass")).hexdigest()])


@lru_cache(maxsize=4)
def _stream(config: CorpusConfig, held: Held, files: tuple[tuple[str, int, int], ...]) -> TextStream:
    tally = tally_for(config, held.tokenizer)
    docs = documents(config, tally)
    check_roles(config, tally)
    keys, digests, copies = _keys(config, docs)
    digest = digest_of(docs)
    first = contract_of(held.tokenizer).first
    key: list[Any] = [digest, held.key, first, _LAYOUT]
    if config.roles:
        key += [list(config.roles), [getattr(t, "spans", ()) for _, t in docs]]
    cached = cache_dir() / f"tokens-{sha256_json(key)[:32]}.npz"
    arrays = _read_cached(cached) or _tokenise(docs, held.tokenizer, first, config.roles, cached)
    return TextStream(
        arrays["tokens"],
        arrays["starts"],
        tuple(n for n, _ in docs),
        digest,
        tally.about(),
        first,
        keys,
        None,
        copies,
        arrays.get("is_row"),
        digests,
    )


def _keys(config: CorpusConfig, docs: list[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """(what each document is held out by, its text's digest, near-duplicates): anybody's text is held out by the digest
    of its first copy.
    """
    digests = tuple(text_digest(t) for _, t in docs)
    if config.kind not in SUFFIXES:
        return tuple(hashlib.sha256(n.encode()).hexdigest() for n, _ in docs), digests, 0
    first = first_copies([t for _, t in docs])
    return tuple(digests[i] for i in first), digests, int((first != np.arange(len(docs))).sum())


def _tokenise(
    docs: list[tuple[str, str]], tokenizer: Any, first: int | None, roles: tuple[str, ...], cached: Path
) -> dict[str, np.ndarray]:
    """``tokens`` and ``starts`` of a stream; with ``roles`` also ``is_row``."""
    begin, pieces, before, marks = [] if first is None else [first], [], "", []
    with long_step("cutting text into tokens", sum(len(t) for _, t in docs), " characters") as shown:
        for at in range(0, len(docs), 256):  # transformers' own result is some 50 times larger than the ids
            some = docs[at : at + 256]
            found, mine = encoded(tokenizer, [t for _, t in some], roles)
            for i, ((name, _), ids) in enumerate(zip(some, found, strict=True)):
                beginning = [] if continues(before, name) else begin
                pieces.append(np.asarray([*beginning, *ids], np.int32))
                if roles:
                    marks.append(np.concatenate([np.zeros(len(beginning), bool), mine[i]]))
                before = name
            shown.update(sum(len(t) for _, t in some))
    tokens = np.concatenate(pieces)
    arrays: dict[str, np.ndarray] = {
        "tokens": tokens,
        "starts": np.cumsum([0, *(len(p) for p in pieces[:-1])], dtype=np.int64),
    }
    if roles:
        arrays["is_row"] = np.concatenate(marks)
    if len(tokens) > _WORTH_CACHING:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stubs take its options for the arrays' names
        with suppress(OSError, UserError):  # a full or read-only home only costs the next process some seconds
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(cached, buffer.getvalue())
    return arrays


def _read_cached(path: Path) -> dict[str, np.ndarray] | None:
    """A cached token stream; None where there is none or it is damaged (it is then made again)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = ["tokens", "starts", *(n for n in arrays.files if n == "is_row")]
            return {name: np.asarray(arrays[name]) for name in names}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def bos_id(tokenizer: Any) -> int:
    """The id that starts every sequence of a model trained here (see :mod:`workbench.corpus.contract`).

    Raises:
        UsageError: the tokenizer has none.
    """
    first = contract_of(tokenizer).first
    if first is None:
        raise UsageError(
            "the tokenizer has neither a BOS nor an EOS token, and sequences here begin with one. Use a tokenizer"
            " that has one."
        )
    return first


def frequencies(stream: TextStream, vocab: int) -> np.ndarray:
    """Token probabilities float64 [vocab] of a stream, the first tokens of its documents not counted."""
    counts = np.bincount(stream.tokens, minlength=vocab).astype(np.float64)
    if stream.first is not None:
        counts[stream.first] = 0
    return counts / counts.sum()
