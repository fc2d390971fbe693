"""``seal.json``: the last file of a store, and the proof that it is complete.

It is the manifest of a store: shards by size and seal, headline numbers, and what made it. Its bytes are the same
whichever worker writes it. A store without it is being filled, was interrupted, or lost a shard.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae import system
from sae.errors import CorruptError, NewerSchemaError
from sae.files import canonical_json, read_json
from workbench.activations.disk import calls as disk
from workbench.activations.format.errors import StoreIncomplete
from workbench.activations.format.layout import Layout
from workbench.activations.format.shard import (
    NO_DATA,
    SHARDS,
    SKIPPED,
    open_plan,
    open_shard,
    plan_datasets,
    shard_datasets,
)
from workbench.activations.format.spec import STORE_JSON, StoreSpec, read_spec
from workbench.version import __version__

SEAL_JSON = "seal.json"
SCHEMA = 1


def write_seal(folder: Path, spec: StoreSpec, *, command: str = "") -> None:
    """Prove every shard's header and write the seal; ``command`` is what makes the store.

    Raises:
        ShardCorrupt, FileNotFoundError: a shard is bad or missing.
    """
    shards: list[dict[str, Any]] = []
    layouts: dict[str, Any] = {}
    skipped: list[int] = []
    rows = 0
    for index in range(spec.n_shards):
        container = open_shard(folder, spec, index)
        shards.append({"name": spec.shard_name(index), "bytes": os.fstat(container.fd).st_size, "seal": container.seal})
        layouts[_key(spec, index)] = container.layout.as_json()
        flags = container.small("tok/flags")
        skipped += skipped_sequences(flags, spec, index)
        rows += int(((flags & NO_DATA) == 0).sum())
        container.close()
    plan = open_plan(folder, spec)
    value = {
        "workbench_schema": SCHEMA,
        "kind": "stores",
        "id": spec.id,
        "command": command or f"workbench harvest {spec.id}",
        "recipe": spec.recipe,
        "code": {"version": spec.made_by.get("workbench", __version__), "libraries": spec.made_by},
        "numbers": {
            "rows": rows,
            "shards": spec.n_shards,
            "bytes": sum(s["bytes"] for s in shards),
            "sequences": spec.n_seq,
            "skipped_sequences": len(skipped),
        },
        "metadata": {
            "store_id": spec.store_id,
            "hooks": list(spec.hooks),
            "sources": [s.name for s in spec.sources],
            "dtype": spec.dtype,
            "plan_seal": plan.seal,
            "layouts": {**layouts, "plan": plan.layout.as_json()},
            "shards": shards,
            "skipped": skipped,
        },
        "files": {},
    }
    plan.close()
    disk.write_file(folder / "tmp", folder / SEAL_JSON, canonical_json(value) + b"\n", replace=True)


def skipped_sequences(flags: np.ndarray, spec: StoreSpec, index: int) -> list[int]:
    """Sequences of a shard that were left out, from its ``tok/flags``."""
    marks = flags.reshape(-1, spec.rows_per_seq)[:, 0] & SKIPPED
    return [int(i) + spec.seqs(index)[0] for i in np.flatnonzero(marks)]


@dataclass(frozen=True)
class Seal:
    """What the seal says: (bytes, seal) per shard name, where things lie in shards and plan, and which sequences were
    left out.
    """

    shards: dict[str, tuple[int, str]]
    layouts: dict[str, Layout]
    plan_seal: str
    skipped: tuple[int, ...]

    def layout(self, spec: StoreSpec, index: int) -> Layout:
        """Where everything lies in a shard."""
        return self.layouts[_key(spec, index)]


def _key(spec: StoreSpec, index: int) -> str:
    """Shards with equally many rows share a layout."""
    lo, hi = spec.rows(index)
    return str(hi - lo)


def read_seal(folder: Path, spec: StoreSpec) -> Seal:
    """Read a store's seal.

    Raises:
        StoreIncomplete: there is none. CorruptError: it belongs to another store, or is damaged.
    """
    path = folder / SEAL_JSON
    try:
        os.close(system.open_file(path))
    except FileNotFoundError:
        left = len([i for i in range(spec.n_shards) if not (folder / SHARDS / spec.shard_name(i)).exists()])
        raise StoreIncomplete(
            f"store {spec.id!r} in {folder} is not complete:"
            f" {f'{left} of {spec.n_shards} shards are missing' if left else 'only its seal is missing'}. Run the"
            " `workbench harvest` that made it again; it makes only what is missing."
        ) from None
    value = read_json(path)
    if (
        isinstance(value, dict)
        and isinstance(value.get("workbench_schema"), int)
        and value["workbench_schema"] > SCHEMA
    ):
        made = value.get("code")
        raise NewerSchemaError(
            f"{path} has schema {value['workbench_schema']}, made by version"
            f" {made.get('version', 'unknown') if isinstance(made, dict) else 'unknown'}. Upgrade: pip install -U"
            " interpretability-workbench"
        )
    try:
        return _parse(value["metadata"], spec)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise CorruptError(
            f"{path} is not the seal of this store: the list of its files, written last, and {STORE_JSON} disagree."
            " `workbench check` sets it aside."
        ) from e


def _parse(value: dict[str, Any], spec: StoreSpec) -> Seal:
    if value["store_id"] != spec.store_id or [s["name"] for s in value["shards"]] != [
        spec.shard_name(i) for i in range(spec.n_shards)
    ]:
        raise ValueError("another store")
    shards = {s["name"]: (int(s["bytes"]), str(s["seal"])) for s in value["shards"]}
    skipped = tuple(value["skipped"])
    if not all(type(i) is int and 0 <= i < spec.n_seq for i in skipped):
        raise ValueError("skipped")
    layouts = {"plan": Layout.from_json(plan_datasets(spec), value["layouts"]["plan"])}
    for index in {0, spec.n_shards - 1}:
        layouts[_key(spec, index)] = Layout.from_json(shard_datasets(spec, index), value["layouts"][_key(spec, index)])
    return Seal(shards, layouts, str(value["plan_seal"]), skipped)


def describe_store(folder: str | Path) -> dict[str, Any]:
    """What a store holds, without opening a shard: ``version`` (eight digits of the seal's digest), ``numbers``,
    ``metadata``.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    read_seal(folder, spec)
    value = read_json(folder / SEAL_JSON)
    streams = [{"source": s.source, "hook": s.hook, "width": s.width} for s in spec.streams]
    about = {k: value["metadata"][k] for k in ("store_id", "hooks", "sources", "dtype")}
    return {
        "version": seal_digest(folder)[:8],
        "numbers": value["numbers"],
        "metadata": {**about, "ctx": spec.ctx, "streams": streams},
    }


def seal_digest(folder: Path) -> str:
    """Hex SHA-256 of the seal's bytes: the digest a result names that was made from this store."""
    return hashlib.sha256((folder / SEAL_JSON).read_bytes()).hexdigest()
