"""Shuffled batches for training, from disk, with a bounded buffer and the next group read ahead.

The first epoch of an iteration does not pass through the page cache, whose filling costs more than the reading. Rows that come
again are kept there from the second epoch on, if all of them fit.

The batch at a step is a pure function of the contract (see :mod:`workbench.activations.shuffle`) and the step. The
state of an iteration is two integers, (epoch, row within the epoch); going on elsewhere costs nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.activations import uncached
from workbench.activations.errors import ResumeMismatch
from workbench.activations.gather import Gatherer, as_torch
from workbench.activations.pool import ShardPool
from workbench.activations.shuffle import EpochOrder, Order
from workbench.activations.spec import STORED, Stream, differences

if TYPE_CHECKING:
    from workbench.activations.shared import SharedBatches

THREADS = 8


@dataclass(frozen=True)
class Batches:
    """An iterable of float32 tensors [batch_size, total width]; streams side by side, in the order given.

    With ``epochs=None`` it never ends. Otherwise every row of the split comes exactly once per epoch, and only the very
    last batch may be short. Iterating again starts again at ``start``.
    """

    pool: Callable[[Batches], ShardPool]
    streams: tuple[Stream, ...]
    order: Order
    batch_size: int
    store_id: str
    dtype: str
    start: int = 0
    epochs: int | None = None
    threads: int = THREADS
    on_group: Callable[[int, int], None] | None = None

    def starting_at(self, step: int) -> Batches:
        """The same batches from step ``step`` (counted from the first batch of epoch 0) on. Costs nothing."""
        return replace(self, start=step)

    @property
    def steps_per_epoch(self) -> float:
        """Batches per epoch (batches run on over the ends of epochs, so this is a fraction)."""
        return self.order.epoch_rows / self.batch_size

    def __len__(self) -> int:
        """Batches still to come.

        Raises:
            TypeError: endless.
        """
        if self.epochs is None:
            raise TypeError("these batches never end (epochs=None)")
        return max(0, -(-self.order.epoch_rows * self.epochs // self.batch_size) - self.start)

    def share(self, part: int, parts: int) -> SharedBatches:
        """The same batches for the ``part``-th of ``parts`` processes, which reads its share of the rows alone."""
        from workbench.activations.shared import SharedBatches

        return SharedBatches(self, part, parts)

    def state(self, step: int) -> dict[str, int]:
        """The two integers that say where step ``step`` begins."""
        epoch, row = divmod(step * self.batch_size, self.order.epoch_rows)
        return {"epoch": epoch, "row": row}

    def contract(self) -> dict[str, Any]:
        """Everything that decides the batches, to be kept in a checkpoint."""
        return {
            "store_id": self.store_id,
            "streams": [[s.source, s.hook] for s in self.streams],
            "batch_size": self.batch_size,
            "order": self.order.contract(),
        }

    def resume(self, contract: dict[str, Any], step: int, *, allow_reshuffle: bool = False) -> Batches:
        """These batches from ``step`` on, if they are the ones that were interrupted.

        Raises:
            ResumeMismatch: another store, split, seed, batch size or buffer; the message says which. With
                ``allow_reshuffle`` they are taken as they are.
        """
        found = differences(contract, self.contract())
        if found and not allow_reshuffle:
            lines = "; ".join(f.replace("the store has", "the checkpoint has").replace("the request", "this run") for f in found[:4])
            raise ResumeMismatch(
                f"the data order differs from the interrupted run's: {lines}. Give the same settings, or allow a new order (then rows may repeat)."
            )
        return self.starting_at(step)

    @property
    def buffer_bytes(self) -> int:
        """Bytes an iteration holds: two group buffers, the batch handed out and the one being made."""
        width = sum(s.width for s in self.streams)
        return 2 * width * (self.group_rows * np.dtype(STORED[self.dtype]).itemsize + self.batch_size * 4)

    @property
    def group_rows(self) -> int:
        """Rows of a group buffer."""
        return min(self.order.units_per_group * self.order.unit_rows, self.order.epoch_rows)

    @property
    def epoch_bytes(self) -> int:
        """Stored bytes of one epoch."""
        return self.order.epoch_rows * sum(s.width for s in self.streams) * np.dtype(STORED[self.dtype]).itemsize

    def __iter__(self) -> Iterator[torch.Tensor]:
        if self.order.epoch_rows == 0:
            return
        reader = GroupReader(self)
        try:
            yield from reader.run()
        finally:
            reader.close()


class GroupReader:
    """Two buffers: one is consumed while a background thread fills the other."""

    def __init__(self, batches: Batches):
        self.b = batches
        self.pool = batches.pool(batches)
        rows = len(self.held(batches.group_rows)) + 1
        self.buffers = [{s.key: uncached.empty((rows, s.width), STORED[batches.dtype]) for s in batches.streams} for _ in range(2)]
        self.uncached_until = batches.state(batches.start)["epoch"] + 1 if uncached.fits(batches.epoch_bytes) else sys.maxsize
        self.ahead = ThreadPoolExecutor(1, "store-ahead")
        self.readers = ThreadPoolExecutor(batches.threads, "store-read") if batches.threads > 1 else None
        self.stop = threading.Event()
        self.gatherer = Gatherer(batches.threads)

    def run(self) -> Iterator[torch.Tensor]:
        b, total = self.b, None if self.b.epochs is None else self.b.order.epoch_rows * self.b.epochs
        at = b.start * b.batch_size
        if total is not None and at >= total:
            return
        groups = self.groups(at)
        out, filled = None, 0
        for buffers, order, skip in groups:
            tensors = [as_torch(buffers[s.key], b.dtype) for s in b.streams]
            index = torch.from_numpy(order)
            i = skip
            while i < len(order):
                if out is None:
                    size = b.batch_size if total is None else min(b.batch_size, total - at)
                    out, filled = self.gatherer.tensor(size, sum(s.width for s in b.streams)), 0
                n = min(len(out) - filled, len(order) - i)
                self.gatherer.take(tensors, index[i : i + n], out[filled : filled + n])
                filled, i, at = filled + n, i + n, at + n
                if filled == len(out):
                    yield out
                    out = None
                    if total is not None and at >= total:
                        return

    def groups(self, at: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, int]]:
        """(buffers, row order, rows to skip) of the groups from stream row ``at`` on, the next one being read meanwhile."""
        epoch, row = divmod(at, self.b.order.epoch_rows)
        current = EpochOrder(self.b.order, epoch)
        group = current.group_at(row)
        skip, side = row - int(current.row0[group]), 0
        pending: Future[np.ndarray] = self.ahead.submit(self._load, current, group, side)
        while True:
            here, here_group = current, group
            order = pending.result()
            group += 1
            if group == current.n_groups:
                current, group = EpochOrder(self.b.order, current.epoch + 1), 0
            side ^= 1
            last = self.b.epochs is not None and current.epoch >= self.b.epochs
            if not last:
                pending = self.ahead.submit(self._load, current, group, side)
            yield self.buffers[side ^ 1], order, skip
            if self.b.on_group:
                self.b.on_group(here.epoch, here_group)
            if last:
                return
            skip = 0

    def held(self, rows: int) -> range:
        """Which of a group's rows, in file order, this reader holds."""
        return range(rows)

    def pieces(self, epoch: EpochOrder, group: int) -> list[tuple[int, int, int]]:
        """What to read of a group: (first row, one past the last, place in the buffer)."""
        return coalesce(
            [piece for unit in epoch.group_units(group).tolist() for piece in self.b.order.kept(unit)], self.b.order.rows_per_shard
        )

    def _load(self, epoch: EpochOrder, group: int, side: int) -> np.ndarray:
        """Fill one buffer with a group; returns the order of its rows."""
        jobs = [(s, lo, hi, at) for s in self.b.streams for lo, hi, at in self.pieces(epoch, group)]
        cache = epoch.epoch >= self.uncached_until
        if self.readers is None:
            self._read(jobs, side, cache)
        else:
            parts = [jobs[k :: self.b.threads] for k in range(self.b.threads)]
            for done in [self.readers.submit(self._read, part, side, cache) for part in parts if part]:
                done.result()
        return epoch.row_order(group)

    def _read(self, jobs: list[tuple[Stream, int, int, int]], side: int, cache: bool) -> None:
        for stream, lo, hi, at in jobs:
            if self.stop.is_set():
                return
            self.pool.read_into(self.buffers[side][stream.key][at : at + hi - lo], stream, lo, hi, cache=cache)

    def close(self) -> None:
        """Stop reading ahead and give the buffers back."""
        self.stop.set()
        self.ahead.shutdown(wait=True, cancel_futures=True)
        if self.readers is not None:
            self.readers.shutdown(wait=True, cancel_futures=True)
        self.gatherer.close()


def coalesce(pieces: list[tuple[int, int]], rows_per_shard: int) -> list[tuple[int, int, int]]:
    """Join row ranges that touch within a shard: (first, last, place in the buffer)."""
    out: list[tuple[int, int, int]] = []
    at = 0
    for lo, hi in pieces:
        if out and out[-1][1] == lo and lo % rows_per_shard:
            out[-1] = (out[-1][0], hi, out[-1][2])
        else:
            out.append((lo, hi, at))
        at += hi - lo
    return out
