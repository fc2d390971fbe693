"""Text for the models: documents, a token stream, and the fixed token plan every harvest and every training batch comes from.

The bundled mixture (``kind="mini"``) is the text of the running Python's own standard library, on every machine and
never shipped, mixed with synthetic windows (:mod:`workbench.windows`). Documents fall into ``train`` or ``heldout`` by a
hash of their name, so the split does not move when files come or go. Other kinds read local text, JSONL or Parquet.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from sae.errors import CorruptError, MissingError, UsageError, UserError
from sae.files import sha256_json, write_bytes
from sae.strict import StrictConfig
from workbench.windows import AGREEMENT, REPEATS, TEXT, agreement_window, snippet_window, tiled_window

Split = Literal["train", "heldout"]
_HELDOUT_SHARE = 0.05
_WORTH_CACHING = 1_000_000  # tokens; fewer are tokenised faster than they are worth a file
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "__phello__", "pydoc_data"}
_STREAMING = ("packing", "dataset", "dataset_revision", "dataset_split", "subset", "shuffle_buffer")
_TEXT_SUFFIXES = {".txt", ".md", ".py", ".rst", ".text"}


class CorpusConfig(StrictConfig):
    """Where tokens come from. Shares are fractions of the windows; what they leave is text.

    ``kind``: "mini" (standard library), "prose" (its documentation only), "text" | "jsonl" | "parquet" (local ``paths``), "hub" (a
    ``dataset`` of the Hugging Face hub, or a folder that holds one; ``paths`` are then patterns of its files).
    """

    kind: Literal["mini", "prose", "text", "jsonl", "parquet", "hub"] = "mini"
    seed: int = 0
    split: Split = "train"
    tiled_share: float = Field(default=0.12, ge=0, le=1)
    snippet_share: float = Field(default=0.28, ge=0, le=1)
    agreement_share: float = Field(default=0.05, ge=0, le=1)
    paths: tuple[str, ...] = ()
    text_field: str = "text"
    packing: Literal["stream", "documents"] = Field("stream", description="documents: one window each, shorter ones left out")
    dataset: str = Field("", description="hub: name, or a folder")
    dataset_revision: str = Field("", description="hub: commit, tag or branch; the commit read is recorded")
    dataset_split: str = "train"
    subset: str = Field("", description="hub: configuration of the dataset")
    shuffle_buffer: int = Field(0, ge=0, description="hub: documents shuffled together, by seed; 0 = the dataset's order")

    @model_validator(mode="before")
    @classmethod
    def _plain_hub(cls, values: Any) -> Any:
        """Text that is streamed comes without synthetic windows."""
        if isinstance(values, dict) and (values.get("kind") == "hub" or values.get("packing") == "documents"):
            return {"tiled_share": 0.0, "snippet_share": 0.0, "agreement_share": 0.0, **values}
        return values

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What streaming added is left out where it says nothing, so older stores and cards keep their digests."""
        values = handler(self)
        return {k: v for k, v in values.items() if k not in _STREAMING or v != type(self).model_fields[k].default}

    @model_validator(mode="after")
    def _consistent(self) -> CorpusConfig:
        if self.tiled_share + self.snippet_share + self.agreement_share > 1:
            raise ValueError("tiled_share + snippet_share + agreement_share is more than 1")
        if self.kind != "hub" and (self.kind in ("mini", "prose")) == bool(self.paths):
            raise ValueError(f"kind {self.kind!r} takes {'no paths' if self.paths else 'at least one path'}")
        if (self.kind == "hub") != bool(self.dataset):
            raise ValueError(f"kind {self.kind!r} takes {'a' if self.kind == 'hub' else 'no'} dataset")
        if self.streamed and self.synthetic_share:
            raise ValueError("streamed text (kind 'hub', or packing 'documents') takes no synthetic windows; leave the shares out")
        return self

    @property
    def streamed(self) -> bool:
        """Whether documents are packed as they are read, instead of shuffled windows of a corpus that is held whole."""
        return self.kind == "hub" or self.packing == "documents"

    @property
    def synthetic_share(self) -> float:
        """Share of windows that are not text."""
        return self.tiled_share + self.snippet_share + self.agreement_share


@dataclass(frozen=True)
class TextStream:
    """All documents of one split as one token stream, each document preceded by BOS.

    ``tokens`` int32 [n]; ``starts`` int64 [documents], ascending; ``names`` one per document; ``digest`` of names and texts.
    """

    tokens: np.ndarray
    starts: np.ndarray
    names: tuple[str, ...]
    digest: str

    def document(self, position: int | np.ndarray) -> np.ndarray:
        """Index of the document that a stream position lies in."""
        return np.searchsorted(self.starts, position, side="right") - 1


@dataclass(frozen=True)
class TokenPlan:
    """The exact tokens of a harvest: a pure function of configuration, tokenizer, ``n_seq`` and ``ctx``.

    ``tokens`` int32 [n_seq, ctx], position 0 = BOS; ``doc_ids`` int32 [n_seq] (synthetic windows each have an id of their
    own above the documents'); ``kinds`` uint8 [n_seq]: 0 text, 1 repeats and snippets, 2 agreement.
    """

    tokens: np.ndarray
    doc_ids: np.ndarray
    kinds: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the three arrays with their shapes."""
        h = hashlib.sha256()
        for a in (self.tokens, self.doc_ids, self.kinds):
            h.update(f"{a.dtype}{a.shape}".encode() + np.ascontiguousarray(a).tobytes())
        return h.hexdigest()


def stdlib_documents(*, prose: bool = False) -> Iterator[tuple[str, str]]:
    """(name, text) of the running Python's standard library: its sources, and the topics of its built-in help.

    With ``prose`` only what was written for readers: help topics and long docstrings. Tests, codec tables and installed packages are
    left out. Names are relative POSIX paths, in sorted order.
    """
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith("config-"))
        for name in sorted(f for f in files if f.endswith(".py")):
            path = Path(folder, name)
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if prose:
                text = "\n\n".join(_docstrings(text))
            if len(text) > 200:
                yield path.relative_to(root).as_posix(), text
    for name in sorted(topics):
        yield f"pydoc_data/topics.py#{name}", topics[name]


def _docstrings(source: str) -> Iterator[str]:
    import ast
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except SyntaxError:
            return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and len(text) > 120:
                yield text


def local_documents(config: CorpusConfig) -> Iterator[tuple[str, str]]:
    """(name, text) of local files: whole text files, the lines of JSONL files, or the rows of Parquet files.

    Raises:
        MissingError: a path does not exist, or nothing readable is below it. CorruptError: a broken line, or no such field.
    """
    suffixes = {"text": _TEXT_SUFFIXES, "jsonl": {".jsonl", ".json"}, "parquet": {".parquet"}}[config.kind]
    for given in config.paths:
        path = Path(given).expanduser()
        if not path.exists():
            raise MissingError(f"corpus path {given!r} does not exist.")
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file())
        if not files:
            raise MissingError(f"corpus path {given!r} holds no {config.kind} files ({', '.join(sorted(suffixes))}).")
        for file in files:
            name = file.name if path.is_file() else file.relative_to(path).as_posix()
            yield from _records(file, name, config)


def _records(file: Path, name: str, config: CorpusConfig) -> Iterator[tuple[str, str]]:
    if config.kind == "text":
        yield name, file.read_text(encoding="utf-8", errors="replace")
    elif config.kind == "jsonl":
        with open(file, encoding="utf-8", errors="replace") as lines:
            for i, line in enumerate(lines):
                if line.strip():
                    try:
                        yield f"{name}#{i}", str(json.loads(line)[config.text_field])
                    except (ValueError, KeyError, TypeError) as e:
                        raise CorruptError(f"{file}, line {i + 1}: not a JSON object with the field {config.text_field!r}.") from e
    else:
        import pandas as pd

        try:
            column = pd.read_parquet(file, columns=[config.text_field])[config.text_field]
        except Exception as e:
            raise CorruptError(f"{file}: cannot read column {config.text_field!r}: {e}") from e
        for i, text in enumerate(column):
            yield f"{name}#{i}", str(text)


def in_split(name: str, split: Split) -> bool:
    """Whether a document belongs to a split: 5 % are held out, by a hash of the name."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return (share < _HELDOUT_SHARE) == (split == "heldout")


def documents(config: CorpusConfig) -> list[tuple[str, str]]:
    """The (name, text) pairs of one split of a corpus.

    Raises:
        UsageError: an empty split, or a hub corpus, which is never held whole.
    """
    if config.kind == "hub":
        raise UsageError(f"dataset {config.dataset!r} is streamed, not held whole; this needs kind = 'text', 'jsonl' or 'parquet'.")
    found = [(n, t) for n, t in _all_documents(config) if in_split(n, config.split)]
    if not found:
        raise UsageError(f"the {config.split} split of this {config.kind!r} corpus is empty: it has too few documents.")
    return found


def _all_documents(config: CorpusConfig) -> Iterator[tuple[str, str]]:
    if config.kind == "hub":
        from workbench.streaming import hub_documents

        return hub_documents(config)
    return stdlib_documents(prose=config.kind == "prose") if config.kind in ("mini", "prose") else local_documents(config)


def text_stream(config: CorpusConfig, tokenizer: Any) -> TextStream:
    """Tokenise one split of a corpus. Remembered within the process for the same configuration and tokenizer."""
    source = config.model_copy(update={"seed": 0, "tiled_share": 0, "snippet_share": 0, "agreement_share": 0})
    return _stream(source, _Held(tokenizer))


class _Held:
    """A tokenizer as a hashable key: equal where the vocabularies are."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.key = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.key == self.key


@lru_cache(maxsize=4)
def _stream(config: CorpusConfig, held: _Held) -> TextStream:
    docs = documents(config)
    digest = sha256_json([[n, hashlib.sha256(t.encode("utf-8", "replace")).hexdigest()] for n, t in docs])
    cached = _cache_folder() / f"tokens-{sha256_json([digest, held.key])[:32]}.npz"
    tokens, starts = _read_cached(cached) or _tokenise(docs, held.tokenizer, cached)
    return TextStream(tokens, starts, tuple(n for n, _ in docs), digest)


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


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interpretability-workbench"


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


def text_windows(stream: TextStream, index: np.ndarray, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows number ``index`` of an endless sequence: (tokens int32 [n, length] without the leading BOS, document of each).

    Each epoch cuts the stream into blocks at a new offset and shuffles them, so no two windows of an epoch overlap.
    """
    blocks = max((len(stream.tokens) - length) // length, 1)
    out, docs = np.zeros((len(index), length), np.int32), np.zeros(len(index), np.int32)
    for i, n in enumerate(index):
        order, offset = _epoch(blocks, min(length, max(len(stream.tokens) - blocks * length, 1)), seed, int(n) // blocks)
        at = offset + int(order[int(n) % blocks]) * length
        piece = stream.tokens[at : at + length]
        out[i, : len(piece)] = piece
        out[i, len(piece) :] = stream.tokens[0]
        docs[i] = stream.document(at)
    return out, docs


@lru_cache(maxsize=8)
def _epoch(blocks: int, offsets: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng([seed, 101, epoch])
    return rng.permutation(blocks), int(rng.integers(offsets))


def synthetic_windows(
    kinds: np.ndarray, probabilities: np.ndarray, tokenizer: Any, length: int, rng: np.random.Generator, split: Split
) -> np.ndarray:
    """One window int32 [length] per entry of ``kinds`` (1 tiled, 2 snippets, 3 agreement), drawn in order from ``rng``."""
    out = np.zeros((len(kinds), length), np.int32)
    for i, kind in enumerate(kinds):
        if kind == 1:
            out[i] = tiled_window(probabilities, length, rng)
        elif kind == 2:
            out[i] = snippet_window(probabilities, length, rng)
        else:
            out[i] = agreement_window(tokenizer, length, rng, split)
    return out


def mixed_windows(config: CorpusConfig, tokenizer: Any, *, first: int, n: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows ``first`` … ``first + n`` of the mixture: (tokens int32 [n, length] without BOS, documents int32, kinds uint8).

    Every window is a pure function of (configuration, tokenizer, its number, ``length``).
    """
    stream = text_stream(config, tokenizer)
    shares = np.cumsum([1 - config.synthetic_share, config.tiled_share, config.snippet_share, config.agreement_share])
    tokens, docs, kinds = np.zeros((n, length), np.int32), np.zeros(n, np.int32), np.zeros(n, np.uint8)
    probabilities = _probabilities(config, tokenizer) if config.synthetic_share else None
    for i, number in enumerate(range(first, first + n)):
        rng = np.random.default_rng([config.seed, 7, number])
        kind = int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
        if kind == 0:
            tokens[i], docs[i : i + 1] = (part[0] for part in text_windows(stream, np.asarray([number]), length, config.seed))
        else:
            assert probabilities is not None
            tokens[i] = synthetic_windows(np.asarray([kind]), probabilities, tokenizer, length, rng, config.split)[0]
            docs[i] = len(stream.names) + number
        kinds[i] = (TEXT, REPEATS, REPEATS, AGREEMENT)[kind]
    return tokens, docs, kinds


def _probabilities(config: CorpusConfig, tokenizer: Any) -> np.ndarray:
    return _train_probabilities(config.model_copy(update={"split": "train"}), _Held(tokenizer))


@lru_cache(maxsize=4)
def _train_probabilities(config: CorpusConfig, held: _Held) -> np.ndarray:
    return frequencies(text_stream(config, held.tokenizer), len(held.tokenizer))


def plan_tokens(config: CorpusConfig, tokenizer: Any, *, n_seq: int, ctx: int) -> TokenPlan:
    """The fixed tokens of a harvest (see :class:`TokenPlan`).

    Raises:
        UsageError: ``n_seq`` or ``ctx`` too small, or an empty split.
    """
    if n_seq < 1 or ctx < 2:
        raise UsageError(f"a token plan needs n_seq >= 1 and ctx >= 2, not n_seq = {n_seq}, ctx = {ctx}.")
    if config.streamed:
        return _streamed_plan(config, tokenizer, n_seq, ctx)
    tokens, docs, kinds = mixed_windows(config, tokenizer, first=0, n=n_seq, length=ctx - 1)
    tokens = np.concatenate([np.full((n_seq, 1), bos_id(tokenizer), np.int32), tokens], axis=1)
    stream = text_stream(config, tokenizer)
    about = {
        "interpreter": platform.python_version(),
        "corpus_digest": stream.digest,
        "documents": len(stream.names),
        "config": config.model_dump(mode="json"),
    }
    return TokenPlan(tokens, docs, kinds, about)


def _streamed_plan(config: CorpusConfig, tokenizer: Any, n_seq: int, ctx: int) -> TokenPlan:
    """A token plan of text that is read only as far as needed; the dataset's commit goes into ``about``."""
    from workbench.streaming import hub_dataset, packed

    documents = ((n, t) for n, t in _all_documents(config) if in_split(n, config.split))
    tokens, docs, about = packed(
        documents, tokenizer, bos_id(tokenizer), n_seq=n_seq, ctx=ctx, whole_documents=config.packing == "documents"
    )
    if config.kind == "hub":
        about["dataset_commit"] = hub_dataset(config)[1]
    return TokenPlan(tokens, docs, np.zeros(n_seq, np.uint8), {**about, "config": config.model_dump(mode="json")})
