"""Writing containers: reserve, write, prove, flush, name. No torch, and no HDF5 call while rows are written.

A *producer* makes the activations: ``producer(seq_start, seq_end)`` yields dicts ``stream key -> array [rows, width]``
for consecutive batches of sequences, rows of a sequence together, excluded positions left out. It must be a pure
function.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from sae import system
from sae.errors import OutOfSpace
from sae.files import disk_errors
from workbench.activations.disk import calls as disk
from workbench.activations.disk import direct_io, writer_token
from workbench.activations.format.errors import NonFiniteActivation
from workbench.activations.format.layout import SEAL, Dataset, Layout, lay_out
from workbench.activations.format.numbers import INFINITE, Statistics, max_magnitude, to_stored
from workbench.activations.format.shard import (
    NO_DATA,
    PLAN,
    SHARDS,
    SKIPPED,
    no_data,
    plan_attributes,
    plan_datasets,
    shard_attributes,
    shard_datasets,
    token_table,
)
from workbench.activations.format.spec import StoreSpec

Producer = Callable[[int, int], Iterator[dict[str, np.ndarray]]]


class PartFile:
    """One container being written under a temporary name; :meth:`finish` seals and commits it."""

    def __init__(self, folder: Path, final: Path, datasets: list[Dataset], attributes: dict[str, Any]):
        self.final = final
        self.layout, self._pages = lay_out(datasets, attributes)
        self.path = folder / "tmp" / f"{final.stem}.{writer_token.token()}.{os.urandom(4).hex()}.part"
        self._digests = {d.name: np.zeros(d.n_blocks, "<u8") for d in self.layout.large}
        self._open = {d.name: xxhash.xxh3_64() for d in self.layout.large}
        self._rows = {d.name: 0 for d in self.layout.large}
        self.fd = disk.open_new(self.path)
        self._out = direct_io.Writer(self.fd)
        try:
            free = system.free_bytes(self.path.parent)
            if free < self.layout.size:
                raise OutOfSpace(f"shard {final.name}", self.layout.size, free)
            disk.allocate(self.fd, self.layout.size)
            for offset, data in self._pages.items():
                disk.write_all(self.fd, data, offset)
        except BaseException:
            self.drop()
            raise

    def append(self, name: str, rows: np.ndarray) -> None:
        """Add rows to a large dataset. Digests do not depend on how rows are grouped into calls."""
        d = self.layout.datasets[name]
        rows = np.ascontiguousarray(rows, d.dtype)
        start, row_bytes = self._rows[name], d.row_bytes
        if start + len(rows) > d.shape[0] or rows.shape[1:] != d.shape[1:]:
            raise ValueError(f"{name}: rows {rows.shape} do not fit {d.shape} at row {start}")
        view = disk.bytes_of(rows)
        self._out.write(view, self.layout.offsets[name] + start * row_bytes)
        at, end = start, start + len(rows)
        while at < end:
            block = at // d.block_rows
            stop = min(end, (block + 1) * d.block_rows)
            part = view[(at - start) * row_bytes : (stop - start) * row_bytes]
            if at % d.block_rows == 0 and (stop - at == d.block_rows or stop == d.shape[0]):
                self._digests[name][block] = xxhash.xxh3_64_intdigest(part)
            else:
                hasher = self._open[name]
                hasher.update(part)
                if stop % d.block_rows == 0 or stop == d.shape[0]:
                    self._digests[name][block] = hasher.intdigest()
                    hasher.reset()
            at = stop
        self._rows[name] = end

    def finish(self, small: dict[str, np.ndarray]) -> bool:
        """Write the small datasets, digests and seal, flush, and commit.

        Returns False where another writer was first.
        """
        short = [n for n, rows in self._rows.items() if rows != self.layout.datasets[n].shape[0]]
        if short:
            raise ValueError(
                f"{self.final.name}: {short[0]} has {self._rows[short[0]]} of {self.layout.datasets[short[0]].shape[0]}"
                " rows"
            )
        parts = {**small, **{self.layout.datasets[n].digests: t for n, t in self._digests.items()}}
        for name, values in parts.items():
            d = self.layout.datasets[name]
            if values.shape != d.shape:
                raise ValueError(f"{name} has shape {values.shape}, not {d.shape}")
            disk.write_all(self.fd, disk.bytes_of(np.ascontiguousarray(values, d.dtype)), self.layout.offsets[name])
        disk.write_all(self.fd, _seal_in_memory(self.layout, self._pages, parts), self.layout.offsets[SEAL])
        self._out.close()
        system.make_read_only(self.fd)
        disk.fsync(self.fd)
        fd, self.fd = self.fd, -1
        os.close(fd)
        return disk.commit(self.path, self.final)

    def drop(self) -> None:
        """Give the file up."""
        self._out.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.path.unlink(missing_ok=True)


def _seal_in_memory(layout: Layout, pages: dict[int, bytes], parts: dict[str, np.ndarray]) -> bytes:
    """The seal computed from what was meant to be written, not from what the disk gives back."""
    digest = hashlib.sha256()
    for lo, hi in layout.gaps():
        region = bytearray(hi - lo)
        pieces = [
            *pages.items(),
            *(
                (layout.offsets[n], np.ascontiguousarray(v, layout.datasets[n].dtype).tobytes())
                for n, v in parts.items()
            ),
        ]
        for offset, data in pieces:
            a, b = max(lo, offset), min(hi, offset + len(data))
            if a < b:
                region[a - lo : b - lo] = data[a - offset : b - offset]
        digest.update(region)
    return digest.digest()


@contextmanager
def part_file(folder: Path, final: Path, datasets: list[Dataset], attributes: dict[str, Any]) -> Iterator[PartFile]:
    """A :class:`PartFile` that leaves nothing behind on an error; a full disk becomes
    :class:`~sae.errors.OutOfSpace`.
    """
    with disk_errors(f"{final.parent.name}/{final.name}"):
        part = PartFile(folder, final, datasets, attributes)
        try:
            yield part
        finally:
            part.drop()


def write_plan(
    folder: Path,
    spec: StoreSpec,
    tokens: np.ndarray,
    doc_ids: np.ndarray,
    kinds: np.ndarray,
    rows: np.ndarray | None = None,
) -> None:
    """Write ``plan.h5``: tokens [n_seq, ctx] with document ids and kinds [n_seq], and ``rows`` [n_seq, ctx] where the
    store's document says so.
    """
    with part_file(folder, folder / PLAN, plan_datasets(spec), plan_attributes(spec)) as part:
        part.append("plan/tokens", tokens)
        if spec.row_mask:
            part.append("plan/rows", _rows_of(spec, rows))
        part.finish({"plan/doc_ids": np.asarray(doc_ids), "plan/kinds": np.asarray(kinds)})


def _rows_of(spec: StoreSpec, rows: np.ndarray | None) -> np.ndarray:
    """``plan/rows`` as it is written."""
    if rows is None or rows.shape != (spec.n_seq, spec.ctx):
        raise ValueError(f"store {spec.id!r} has a row mask of {spec.n_seq} x {spec.ctx}, which was not given")
    return rows.astype(np.uint8)


def write_shard(
    folder: Path,
    spec: StoreSpec,
    index: int,
    tokens: np.ndarray,
    producer: Producer,
    *,
    rows: np.ndarray | None = None,
) -> bool:
    """Make shard ``index`` and commit it. Returns False where it was there already.

    Args:
        rows: ``plan/rows`` [n_seq, ctx], of a store that has it.

    Raises:
        NonFiniteActivation: NaN, infinity, or beyond the stored type. OutOfSpace: the disk is full.
    """
    seq0, seq1 = spec.seqs(index)
    small = token_table(spec, tokens, index)
    skip = np.zeros(seq1 - seq0, bool)
    chosen = _rows_of(spec, rows)[seq0:seq1] if spec.row_mask else None
    left = no_data(spec, tokens[seq0:seq1], chosen)  # rows of BOS and pads, say: zero on disk, never read
    at = 0
    kind, mask, _ = INFINITE[spec.dtype]
    stats = {s.key: Statistics(s.width, spec.dtype) for s in spec.streams}
    with (
        part_file(
            folder, folder / SHARDS / spec.shard_name(index), shard_datasets(spec, index), shard_attributes(spec, index)
        ) as part,
        ThreadPoolExecutor(1, "store-statistics") as beside,  # sums while this thread writes
    ):
        done = seq0
        for batch in producer(seq0, seq1):
            stored = {s.key: to_stored(batch[s.key], spec.dtype) for s in spec.streams}
            n_rows = len(stored[spec.streams[0].key])
            if (out := left[at : at + n_rows]).any():
                stored = {key: np.where(out[:, None], values.dtype.type(0), values) for key, values in stored.items()}
            n, at = n_rows // spec.rows_per_seq, at + n_rows
            bad, largest = _refuse_or_mark(spec, stored, done, n)
            if bad.any():
                stored = {key: _without(values, bad, spec.rows_per_seq) for key, values in stored.items()}
                largest = {key: max_magnitude(values.view(kind), mask) for key, values in stored.items()}
            sums = [beside.submit(stats[key].add, values, largest[key]) for key, values in stored.items()]
            for key, values in stored.items():
                part.append(f"acts/{key}", values)
            for summed in sums:
                summed.result()
            skip[done - seq0 : done - seq0 + n] = bad
            done += n
        left_out = np.repeat(skip, spec.rows_per_seq)
        small["tok/flags"] = np.where(left_out, SKIPPED, 0).astype(np.uint8) | np.where(left, NO_DATA, 0).astype("u1")
        small["store_json"] = np.frombuffer(spec.to_json(), np.uint8)
        kept = int((~left_out & ~left).sum())
        for s in spec.streams:
            small[f"stats/{s.key}/sum"], small[f"stats/{s.key}/moments"] = stats[s.key].result(kept)
        return part.finish(small)


def _without(values: np.ndarray, bad: np.ndarray, rows_per_seq: int) -> np.ndarray:
    """A copy of rows in which the sequences marked in ``bad`` are zero."""
    out = values.reshape(len(bad), rows_per_seq, -1).copy()
    out[bad] = 0
    return out.reshape(values.shape)


def _refuse_or_mark(
    spec: StoreSpec, stored: dict[str, np.ndarray], first_seq: int, n: int
) -> tuple[np.ndarray, dict[str, int]]:
    """Which of ``n`` sequences hold a non-finite number (all False unless the store skips such sequences); largest
    magnitudes by key.
    """
    bad, largest = np.zeros(n, bool), {}
    kind, mask, infinite = INFINITE[spec.dtype]
    for s in spec.streams:
        values = stored[s.key]
        if values.shape != (n * spec.rows_per_seq, s.width):
            raise ValueError(
                f"stream {s.key} ({s.hook}) gave {values.shape}, expected {(n * spec.rows_per_seq, s.width)}"
            )
        bits = values.view(kind)
        largest[s.key] = max_magnitude(bits, mask)
        if largest[s.key] < infinite:
            continue
        rows = ((bits & mask) >= infinite).any(axis=1)
        if spec.non_finite == "refuse":
            row = int(rows.argmax())
            worst = bits[row][(bits[row] & mask) >= infinite][0] & mask
            why = "NaN" if worst > infinite else f"infinite (as {spec.dtype})"
            raise NonFiniteActivation(
                first_seq + row // spec.rows_per_seq,
                int(spec.positions[row % spec.rows_per_seq]),
                f"{s.source} {s.hook}",
                why,
            )
        bad |= rows.reshape(n, -1).any(axis=1)
    return bad, largest
