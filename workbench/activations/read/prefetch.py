"""What stands behind an iteration over batches: one group of rows is handed out while the next is read.

The disk never waits for rows to be handed out: a group's reads begin as soon as its buffer is free, while the last of
the group before are still on their way. The first epoch of an iteration does not pass through the page cache, whose
filling costs more than the reading. Rows that come again are kept there from the second epoch on, if all of them fit.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from workbench.activations.disk import direct_io
from workbench.activations.disk.aio import Read, direct_reader
from workbench.activations.format.spec import STORED
from workbench.activations.read.gather import Gatherer, as_torch
from workbench.activations.read.pool import Piece
from workbench.activations.read.shuffle import EpochOrder

if TYPE_CHECKING:
    from workbench.activations.format.spec import Stream
    from workbench.activations.read.pool import ShardPool
    from workbench.activations.read.shuffle import Order

_CHUNK = 16
"""Pieces handed to readers at a time."""
_BEGUN = 8
"""Chunks that may be on their way: their shards are open, so this bounds the files."""


class GroupSource(Protocol):
    """What a reader asks of the batches it stands behind: :class:`workbench.activations.read.batches.Batches`."""

    @property
    def pool(self) -> Callable[[Any], ShardPool]: ...
    @property
    def streams(self) -> tuple[Stream, ...]: ...
    @property
    def order(self) -> Order: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def epochs(self) -> int | None: ...
    @property
    def threads(self) -> int: ...
    @property
    def on_group(self) -> Callable[[int, int], None] | None: ...
    @property
    def group_rows(self) -> int: ...
    @property
    def epoch_bytes(self) -> int: ...
    def state(self, step: int) -> dict[str, int]:
        """Where a step begins."""

    def starting_at(self, step: int) -> GroupSource:
        """The same from another step on."""


class GroupReader:
    """Two buffers: one is consumed while the other is filled."""

    def __init__(self, batches: GroupSource):
        self.b = batches
        self.pool = batches.pool(batches)
        rows = len(self.held(batches.group_rows)) + 1
        self.buffers = [
            {s.key: direct_io.empty((rows, s.width), STORED[batches.dtype]) for s in batches.streams} for _ in range(2)
        ]
        self.uncached_until = (
            batches.state(batches.start)["epoch"] + 1 if direct_io.fits(batches.epoch_bytes) else sys.maxsize
        )
        self.prefetcher = ThreadPoolExecutor(1, "store-ahead")
        self.readers = ThreadPoolExecutor(batches.threads, "store-read")
        self.fresh = self.readers.submit(direct_io.touch, *self.buffers[1].values())  # while the first is being filled
        self.direct = direct_reader()
        self.begun: deque[Future[None]] = deque()
        self.chunk = max(1, min(_CHUNK, self.pool.capacity // _BEGUN))
        self.stop = False
        self.gatherer = Gatherer(batches.threads)

    def run(self) -> Iterator[torch.Tensor]:
        """Batch by batch; one may span several groups."""
        b, total = self.b, None if self.b.epochs is None else self.b.order.epoch_rows * self.b.epochs
        at = b.start * b.batch_size
        if total is not None and at >= total:
            return
        out, filled = None, 0
        for buffers, order, skip in self.groups(at):
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
        """(buffers, row order, rows to skip) of the groups from stream row ``at`` on, the next one being read
        meanwhile.
        """
        epoch, row = divmod(at, self.b.order.epoch_rows)
        first = EpochOrder(self.b.order, epoch)
        group = first.group_at(row)
        skip, side = row - int(first.row0[group]), 0
        plan = self._plan(first, group)
        pending = deque((*work, self.prefetcher.submit(self._load, *work, side)) for side, work in zip((0, 1), plan))
        while pending:
            here, group, loading = pending.popleft()
            order, reading = loading.result()
            for done in reading:
                done.result()
            yield self.buffers[side], order, skip
            if self.b.on_group:
                self.b.on_group(here.epoch, group)
            if work := next(plan, None):
                pending.append((*work, self.prefetcher.submit(self._load, *work, side)))
            skip, side = 0, side ^ 1

    def _plan(self, first: EpochOrder, group: int) -> Iterator[tuple[EpochOrder, int]]:
        """(epoch, group) of all groups to come."""
        epoch = first.epoch
        while self.b.epochs is None or epoch < self.b.epochs:
            order = first if epoch == first.epoch else EpochOrder(self.b.order, epoch)
            yield from ((order, g) for g in range(group, order.n_groups))
            epoch, group = epoch + 1, 0

    def held(self, rows: int) -> range:
        """Which of a group's rows, in file order, this reader holds."""
        return range(rows)

    def pieces(self, epoch: EpochOrder, group: int) -> list[tuple[int, int, int]]:
        """What to read of a group: (first row, one past the last, place in the buffer)."""
        return coalesce(
            [piece for unit in epoch.group_units(group).tolist() for piece in self.b.order.kept(unit)],
            self.b.order.rows_per_shard,
        )

    def _load(self, epoch: EpochOrder, group: int, side: int) -> tuple[np.ndarray, list[Future[None]]]:
        """Begin to fill one buffer with a group; returns the order of its rows, and the reads to wait for."""
        cache, pieces = epoch.epoch >= self.uncached_until, self.pieces(epoch, group)
        reading: list[Future[None]] = []
        if side:
            self.fresh.result()
        for stream in self.b.streams:
            rows = self.buffers[side][stream.key]
            for i in range(0, len(pieces), self.chunk):
                if self.stop:
                    raise CancelledError
                chunk = [
                    self.pool.piece(rows[at : at + hi - lo], stream, lo, hi)
                    for lo, hi, at in pieces[i : i + self.chunk]
                ]
                reading += self._begin(chunk, cache)
        return epoch.row_order(group), reading

    def _begin(self, pieces: list[Piece], cache: bool) -> list[Future[None]]:
        """Have pieces read: directly, many at a time, where that is possible, and by several threads otherwise."""
        direct: list[Read] = []
        other = pieces
        if self.direct and not cache:
            read_requests = [piece.place() for piece in pieces]
            direct = [(place, piece.finish) for place, piece in zip(read_requests, pieces) if place[2]]
            other = [piece for place, piece in zip(read_requests, pieces) if not place[2]]
        reading = [self.direct.submit(direct)] if self.direct and direct else []
        reading += [self.readers.submit(self._read, other, cache)] if other else []
        self.begun.extend(reading)
        while len(self.begun) > _BEGUN:
            with suppress(CancelledError):
                self.begun.popleft().exception()
        return reading

    def _read(self, pieces: list[Piece], cache: bool) -> None:
        for piece in pieces:
            if self.stop:
                raise CancelledError
            piece.read(cache=cache)

    def close(self) -> None:
        """Stop reading ahead and give the buffers back."""
        self.stop = True
        self.readers.shutdown(wait=True, cancel_futures=True)
        if self.direct:
            self.direct.close()
        self.prefetcher.shutdown(wait=True, cancel_futures=True)  # last, because it may wait for the others
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
