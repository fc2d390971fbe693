"""Filling a store with any number of workers and no coordinator.

Every worker does the same: agree on ``store.json`` (whoever links it first decides), then make whatever shard is
missing and not being made by a live worker. Two workers on one shard waste time and nothing else: the first to commit
wins and the bytes would have been equal. The lock only tells a busy store from an abandoned one; correctness never
rests on it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from sae.errors import UntrustedFile
from sae.files import canonical_json, disk_errors
from workbench.activations.disk import calls as disk
from workbench.activations.disk import writer_token
from workbench.activations.disk.locks import Lock
from workbench.activations.format.errors import ReadOnlyStore, ShardCorrupt, StoreBusy, StoreMismatch
from workbench.activations.format.seal import SEAL_JSON, write_seal
from workbench.activations.format.shard import PLAN, SHARDS, open_plan, open_shard
from workbench.activations.format.spec import STORE_JSON, StoreSpec, check_same, read_spec
from workbench.activations.write.interrupts import check_signals, listening
from workbench.activations.write.writer import Producer, write_plan, write_shard

LOCK = "LOCK"
PROGRESS = "progress.json"
QUARANTINE = "quarantine"
_WAIT = 0.2
_PATIENCE = 30.0
"""Seconds to wait for shards that others seem to be making; then they are made here too, which is harmless."""


def check_writable(folder: Path) -> None:
    """Fail early where nothing can be written.

    Raises:
        ReadOnlyStore: the folder, or the nearest existing one above it, refuses a new file.
    """
    at = folder
    while not at.exists() and at != at.parent:
        at = at.parent
    if at.is_dir() and os.access(at, os.W_OK | os.X_OK):
        return
    why = "it is a file" if at.is_file() else "it is read-only for you"
    raise ReadOnlyStore(
        f"{at} may not be written to ({why}). Complete stores there can be read; to harvest, choose another"
        " --workspace."
    )


@contextmanager
def joined(folder: Path, spec: StoreSpec) -> Iterator[None]:
    """Create or join the store, and hold its lock (shared with other workers of the same plan) meanwhile.

    Raises:
        StoreBusy: a live worker fills it by another plan. StoreMismatch: it was planned differently.
        ReadOnlyStore: it may not be written to.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    with disk_errors(str(folder)):
        for path in (folder, folder / SHARDS, folder / "tmp", folder / QUARANTINE):
            disk.make_folder(path)
        lock = Lock(folder / LOCK)
        try:
            alone = lock.take(exclusive=True)
            if alone:
                remove_parts(folder, strangers=True)
            lock.take(exclusive=False)
            _agree(folder, spec, alone)
            yield
            remove_parts(folder, strangers=lock.take(exclusive=True))
        finally:
            try:
                remove_parts(
                    folder, strangers=False, own=True
                )  # a signal can land between the making of a part and the care for it
            finally:
                lock.close()


def _agree(folder: Path, spec: StoreSpec, alone: bool) -> None:
    if not os.path.lexists(folder / STORE_JSON):
        disk.write_file(folder / "tmp", folder / STORE_JSON, spec.to_json(), replace=False)
    try:
        check_same(read_spec(folder), spec, str(folder))
    except StoreMismatch as e:
        if not alone:
            raise StoreBusy(
                f"{folder} is being filled right now by another harvest with other settings. Wait for it, or give this"
                f" recipe another id. {e}"
            ) from e
        raise


def remove_parts(folder: Path, *, strangers: bool, own: bool = False) -> None:
    """Remove temporary files of writers that are certainly dead; with ``strangers`` also those of other machine runs,
    with ``own`` this process's.
    """
    mine = writer_token.token()
    for name in os.listdir(folder / "tmp"):
        token = _owner(name)
        other_run = token.split("-")[0] != mine.split("-")[0]
        if writer_token.provably_dead(token) or (strangers and other_run) or (own and token == mine):
            disk.remove(folder / "tmp" / name)


def _owner(name: str) -> str:
    parts = name.split(".")
    return parts[-3] if len(parts) >= 4 else "unknown-0-0"


def missing(folder: Path, spec: StoreSpec) -> list[int]:
    """Indices of shards without a committed file."""
    have = set(os.listdir(folder / SHARDS))
    return [i for i in range(spec.n_shards) if spec.shard_name(i) not in have]


def set_aside(folder: Path, path: Path) -> Path:
    """Move a bad file to ``quarantine/`` under a free name, and take the seal away: the store is incomplete now."""
    (folder / SEAL_JSON).unlink(missing_ok=True)
    n = 0
    while os.path.lexists(target := folder / QUARANTINE / f"{path.stem}.{n}{path.suffix}"):
        n += 1
    with suppress(FileNotFoundError):
        disk.rename(path, target)
        disk.fsync_folder(path.parent)
    return target


def fill(
    folder: Path,
    spec: StoreSpec,
    tokens: np.ndarray,
    producer: Producer,
    *,
    doc_ids: np.ndarray | None = None,
    kinds: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    slot: int = 0,
    slots: int = 1,
    command: str = "",
    on_shard: Callable[[int, int], None] | None = None,
    keep_going: Callable[[], bool] = lambda: True,
) -> int:
    """Make the store complete, together with whoever else is at it. Returns the number of shards made here.

    Args:
        tokens: [n_seq, ctx] int32, with ``doc_ids`` and ``kinds`` [n_seq]. rows: which of them may be rows, bool
            likewise, of a store with a row mask.
        slot, slots: where to begin among the missing shards, so that workers seldom meet.
        command: what makes the store, for its seal.
        on_shard: called as ``on_shard(done, total)`` after every look at the store.
        keep_going: asked before every shard; False stops early and leaves the rest missing.
    """
    made = 0
    with check_signals() as listen, joined(folder, spec):
        producer = listening(producer, listen)
        with disk_errors(str(folder)):
            write_plan_if_missing(folder, spec, tokens, doc_ids, kinds, rows)
            _recheck(folder, spec)
        last_note = waited = 0.0
        while todo := missing(folder, spec):
            listen()
            if on_shard:
                on_shard(spec.n_shards - len(todo), spec.n_shards)
            if not keep_going():
                return made
            if time.monotonic() - last_note > 1:
                _tell(folder, spec, len(todo))
                last_note = time.monotonic()
            index = _choose(folder, spec, todo, slot, slots)
            if index is None and waited < _PATIENCE:
                time.sleep(_WAIT)
                waited += _WAIT
                continue
            index, waited = todo[0] if index is None else index, 0.0
            made += _make(folder, spec, index, tokens, producer, rows)
        if on_shard:
            on_shard(spec.n_shards, spec.n_shards)
        with disk_errors(str(folder)):
            _tell(folder, spec, 0)
            write_seal(folder, spec, command=command)
    return made


def _choose(folder: Path, spec: StoreSpec, todo: list[int], slot: int, slots: int) -> int | None:
    """The next missing shard nobody alive is making, beginning with this worker's share; None where
    all are being made.
    """
    remove_parts(folder, strangers=False)
    mine = writer_token.token()
    taken = {name.split(".")[0] for name in os.listdir(folder / "tmp") if _owner(name) != mine}
    free = [i for i in todo if f"{i:06d}" not in taken]
    return min(free, key=lambda i: (i % slots != slot, i)) if free else None


def _make(
    folder: Path, spec: StoreSpec, index: int, tokens: np.ndarray, producer: Producer, rows: np.ndarray | None
) -> bool:
    for attempt in range(3):
        try:
            return write_shard(folder, spec, index, tokens, producer, rows=rows)
        except FileNotFoundError:  # another machine held our temporary file for abandoned
            if (folder / SHARDS / spec.shard_name(index)).exists():
                return False
            if attempt == 2:
                raise
        except OSError as e:  # a failed flush: these bytes are lost, the next attempt has a new file
            if e.errno != errno.EIO or attempt == 2:
                raise
    raise AssertionError("unreachable")


def write_plan_if_missing(
    folder: Path,
    spec: StoreSpec,
    tokens: np.ndarray,
    doc_ids: np.ndarray | None,
    kinds: np.ndarray | None,
    rows: np.ndarray | None = None,
) -> None:
    """Make sure ``plan.h5`` is there and right; a damaged one is set aside and written again."""
    if os.path.lexists(folder / PLAN):
        try:
            open_plan(folder, spec).close()
            return
        except ShardCorrupt:
            set_aside(folder, folder / PLAN)
    zeros = np.zeros(spec.n_seq, np.int32)
    write_plan(
        folder,
        spec,
        tokens,
        zeros if doc_ids is None else doc_ids,
        zeros.astype(np.uint8) if kinds is None else kinds,
        rows,
    )


def _recheck(folder: Path, spec: StoreSpec) -> None:
    """Set committed shards aside that are no longer what they were; they count as missing then."""
    for index in range(spec.n_shards):
        try:
            open_shard(folder, spec, index).close()
        except FileNotFoundError:
            continue
        except (ShardCorrupt, UntrustedFile):
            set_aside(folder, folder / SHARDS / spec.shard_name(index))


def _tell(folder: Path, spec: StoreSpec, left: int) -> None:
    """Replace ``progress.json``: a convenience for pages that poll, so it is not flushed."""
    tmp = folder / "tmp" / f"{PROGRESS}.{writer_token.token()}.{os.urandom(4).hex()}.part"
    done = spec.n_shards - left
    try:
        tmp.write_bytes(
            canonical_json({"store_id": spec.store_id, "shards": spec.n_shards, "done": done, "rows": spec.n_rows})
            + b"\n"
        )
        disk.rename(tmp, folder / PROGRESS)
    finally:
        tmp.unlink(missing_ok=True)
