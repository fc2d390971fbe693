"""``store.json``: everything that decides a store's content, and the arithmetic of its rows.

A shard is a pure function of this document and its index, so two processes with equal documents make equal shards.
``store_id`` is the SHA-256 of the canonical JSON of the document without ``store_id``.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from sae import system
from sae.changes import ABSENT, changes
from sae.errors import ConfigError, CorruptError, MissingError, NewerSchemaError, UsageError
from sae.files import canonical_json, parse_json, sha256_json
from sae.strict import StrictConfig, nearest, parse_config
from workbench.activations.format.errors import StoreMismatch

SCHEMA = 1
FORMAT = "actstore"
STORE_JSON = "store.json"
MAX_STORE_JSON = 16 * 1024 * 1024
STORED = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
DType = Literal["float32", "float16", "bfloat16"]


class Source(StrictConfig):
    """One model at one revision.

    ``weights`` is a digest of its parameters, so equal names with other weights differ.
    """

    name: str
    model: str
    revision: str | None = None
    weights: str = ""
    about: dict[str, Any] = Field(default_factory=dict)


class Stream(StrictConfig):
    """Activations of one hook of one source: dataset ``/acts/<key>``, ``width`` numbers per row.

    ``hook`` is the name shared by all sources of the store; ``at`` is what this source's model calls it.
    """

    key: str = Field(pattern=r"^h\d{3,}$")
    source: str
    hook: str
    at: str
    width: int = Field(ge=1, le=1 << 24)


class StoreSpec(StrictConfig):
    """The content of ``store.json`` (field by field in ``docs/store-format.md``)."""

    format: Literal["actstore"] = "actstore"
    schema_version: int = SCHEMA
    id: str
    sources: tuple[Source, ...] = Field(min_length=1)
    streams: tuple[Stream, ...] = Field(min_length=1)
    plan: dict[str, Any]
    n_seq: int = Field(ge=1)
    ctx: int = Field(ge=1, le=1 << 20)
    exclude: tuple[int, ...] = (0,)
    exclude_ids: tuple[int, ...] = ()
    row_mask: bool = False
    seqs_per_shard: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    dtype: DType = "float32"
    block_rows: int = Field(default=64, ge=1, le=1 << 20)
    hash: Literal["xxh3_64"] = "xxh3_64"
    heldout_seqs: int = Field(default=0, ge=0)
    non_finite: Literal["refuse", "skip-sequence"] = "refuse"
    recipe: dict[str, Any] = Field(default_factory=dict)
    made_by: dict[str, str] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """``exclude_ids`` and ``row_mask`` are written where they say something, so stores without them keep their
        ids.
        """
        return {k: v for k, v in handler(self).items() if k not in ("exclude_ids", "row_mask") or v}

    @model_validator(mode="after")
    def _consistent(self) -> StoreSpec:
        names = [s.name for s in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"two sources share a name: {names}")
        if len({(s.source, s.hook) for s in self.streams}) != len(self.streams) or len(
            {s.key for s in self.streams}
        ) != len(self.streams):
            raise ValueError("two streams share a key, or a source and hook")
        if unknown := {s.source for s in self.streams} - set(names):
            raise ValueError(f"streams of unknown sources {sorted(unknown)}")
        if (
            list(self.exclude) != sorted(set(self.exclude))
            or any(not 0 <= p < self.ctx for p in self.exclude)
            or len(self.exclude) >= self.ctx
        ):
            raise ValueError(
                "exclude lists positions of a sequence whose rows are not kept: distinct, in order, below ctx ="
                f" {self.ctx}, and not all of them"
            )
        if list(self.exclude_ids) != sorted(set(self.exclude_ids)):
            raise ValueError("exclude_ids lists token ids whose rows are not kept: distinct and in order")
        if self.heldout_seqs >= self.n_seq and self.n_seq > 1:
            raise ValueError("heldout_seqs holds out every sequence and leaves none to train on; lower it")
        return self

    @cached_property
    def positions(self) -> np.ndarray:
        """Positions of a sequence that have a row, int32 in order."""
        return np.setdiff1d(np.arange(self.ctx, dtype=np.int32), np.asarray(self.exclude, np.int32))

    @property
    def rows_per_seq(self) -> int:
        """Rows one sequence takes on disk; those that are no data (``exclude_ids``, ``plan/rows``) are zero there and
        never read.
        """
        return self.ctx - len(self.exclude)

    @property
    def n_rows(self) -> int:
        """Rows of the complete store, per stream."""
        return self.n_seq * self.rows_per_seq

    @property
    def n_shards(self) -> int:
        """Shards of the complete store."""
        return -(-self.n_seq // self.seqs_per_shard)

    @property
    def rows_per_shard(self) -> int:
        """Rows of every shard but the last."""
        return self.seqs_per_shard * self.rows_per_seq

    @property
    def train_rows(self) -> int:
        """Rows of the sequences that are not held out; they come first."""
        return (self.n_seq - self.heldout_seqs) * self.rows_per_seq

    @property
    def itemsize(self) -> int:
        """Bytes of one stored number."""
        return np.dtype(STORED[self.dtype]).itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all streams."""
        return sum(s.width for s in self.streams) * self.itemsize

    @cached_property
    def hooks(self) -> tuple[str, ...]:
        """Store-level hook names, in order of first appearance."""
        return tuple(dict.fromkeys(s.hook for s in self.streams))

    @cached_property
    def store_id(self) -> str:
        """Hex SHA-256 that names this content."""
        return sha256_json(self.model_dump(mode="json"))

    def shard_name(self, index: int) -> str:
        """File name of a shard."""
        return f"{index:06d}.h5"

    def seqs(self, index: int) -> tuple[int, int]:
        """First sequence of a shard, and one past its last."""
        start = index * self.seqs_per_shard
        return start, min(self.n_seq, start + self.seqs_per_shard)

    def rows(self, index: int) -> tuple[int, int]:
        """First row of a shard, and one past its last."""
        lo, hi = self.seqs(index)
        return lo * self.rows_per_seq, hi * self.rows_per_seq

    def stream(self, source: str, hook: str) -> Stream:
        """The stream of one source and hook.

        Raises:
            UsageError: no such source or hook; the message names the nearest.
        """
        for s in self.streams:
            if s.source == source and hook in (s.hook, s.at):
                return s
        names = [s.name for s in self.sources]
        if source not in names:
            raise UsageError(f"store {self.id!r} has no source {source!r} ({nearest(source, names)})")
        raise UsageError(
            f"store {self.id!r} has no hook {hook!r} of source {source!r}"
            f" ({nearest(hook, [s.hook for s in self.streams if s.source == source])})"
        )

    def to_json(self) -> bytes:
        """The bytes of ``store.json``: canonical, one line, ``store_id`` included."""
        return canonical_json({**self.model_dump(mode="json"), "store_id": self.store_id}) + b"\n"

    @classmethod
    def from_json(cls, data: bytes, *, where: str) -> StoreSpec:
        """Read ``store.json``.

        Raises:
            NewerSchemaError: made by a newer version. CorruptError: not a store document, or its store_id is not its
            digest.
        """
        values = parse_json(data, where=where)
        if (
            not isinstance(values, dict)
            or values.get("format") != FORMAT
            or type(values.get("schema_version")) is not int
        ):
            raise CorruptError(
                f"{where} does not describe an activation store of this program. Restore it from a copy, or harvest"
                " into a new store."
            )
        if values["schema_version"] > SCHEMA:
            made = values.get("made_by")
            version = made.get("workbench", "unknown") if isinstance(made, dict) else "unknown"
            raise NewerSchemaError(
                f"{where} has schema {values['schema_version']}, made by version {version}; this version reads up to"
                f" {SCHEMA}. Upgrade: pip install -U interpretability-workbench"
            )
        named = values.pop("store_id", None)
        try:
            spec = parse_config(cls, values, where=where)
        except ConfigError as e:
            raise CorruptError(f"{e}. The store's plan was damaged; harvest into a new store.") from e
        if named != spec.store_id:
            raise CorruptError(
                f"{where}: store_id {str(named)[:16]!r} is not the digest of its content ({spec.store_id[:16]}); it was"
                " edited or damaged. Restore it from a copy, or harvest into a new store."
            )
        return spec


def read_spec(folder: Path) -> StoreSpec:
    """Read a store's ``store.json`` (never through a link).

    Raises:
        MissingError: no store there. See :meth:`StoreSpec.from_json` for the others.
    """
    path = folder / STORE_JSON
    try:
        fd = system.open_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(
            f"{folder} is not an activation store (it has no {STORE_JSON}). `workbench harvest RECIPE` makes one."
        ) from None
    with open(fd, "rb") as f:
        data = f.read(MAX_STORE_JSON + 1)
    if len(data) > MAX_STORE_JSON:
        raise CorruptError(
            f"{path} has more than {MAX_STORE_JSON:,} bytes; this program did not write it. Restore it from a copy."
        )
    return StoreSpec.from_json(data, where=str(path))


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """``field: old is …, new is …`` for every leaf in which two JSON values differ."""
    return [f"{c.key}: the store has {_shown(c.there)}, the request {_shown(c.asked)}" for c in changes(old, new, path)]


def _shown(value: Any) -> str:
    return json.dumps(None if value is ABSENT else value)[:100]


def check_same(stored: StoreSpec, wanted: StoreSpec, where: str) -> None:
    """Refuse to go on with another plan.

    Raises:
        StoreMismatch: naming every differing field with both values.
    """
    if stored.store_id != wanted.store_id:
        found = differences(stored.model_dump(mode="json"), wanted.model_dump(mode="json"))
        found.sort(key=lambda line: line.startswith(("recipe", "made_by")))
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        raise StoreMismatch(
            f"{where} was planned differently. {'; '.join(found[:4])}{more}. --replace makes it anew (the old one"
            " stays until the new one is whole), or give the recipe another id."
        )
