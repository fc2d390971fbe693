"""One process's share of the batches several processes train on: it reads its part of every group and nothing else.

The rows of a group lie in its buffer in file order; process ``part`` of ``parts`` holds the ``part``-th piece of it.
The batch at a step is the same as for one process, since only the order in which rows are returned, not who reads them,
decides it: each process yields those of its rows that belong to the batch and says where in it they stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from sae.rows import LocalRows
from workbench.activations.read.gather import as_torch, take
from workbench.activations.read.prefetch import GroupReader, GroupSource
from workbench.activations.read.shuffle import EpochOrder


@dataclass(frozen=True)
class SharedBatches:
    """An iterable of :class:`sae.rows.LocalRows`: the ``part``-th of ``parts`` shares of the same batches."""

    whole: GroupSource
    part: int
    parts: int

    def starting_at(self, step: int) -> SharedBatches:
        """The same shares from step ``step`` on. Costs nothing."""
        return replace(self, whole=self.whole.starting_at(step))

    def __iter__(self) -> Iterator[LocalRows]:
        if self.whole.order.epoch_rows == 0:
            return
        reader = _ShareReader(self)
        try:
            yield from reader.shares()
        finally:
            reader.close()


class _ShareReader(GroupReader):
    def __init__(self, shared: SharedBatches):
        self.part, self.parts = shared.part, shared.parts
        super().__init__(shared.whole)

    def held(self, rows: int) -> range:
        return range(rows * self.part // self.parts, rows * (self.part + 1) // self.parts)

    def pieces(self, epoch: EpochOrder, group: int) -> list[tuple[int, int, int]]:
        mine = self.held(epoch.group_rows(group))
        cut = []
        for lo, hi, at in super().pieces(epoch, group):
            first, last = max(at, mine.start), min(at + hi - lo, mine.stop)
            if first < last:
                cut.append((lo + first - at, lo + last - at, first - mine.start))
        return cut

    def shares(self) -> Iterator[LocalRows]:
        """Share by share; a batch may span two groups."""
        b, total = self.b, None if self.b.epochs is None else self.b.order.epoch_rows * self.b.epochs
        at, filled = b.start * b.batch_size, 0
        rows: list[torch.Tensor] = []
        batch_index: list[torch.Tensor] = []
        if total is not None and at >= total:
            return
        for buffers, order, skip in self.groups(at):
            tensors = [as_torch(buffers[s.key], b.dtype) for s in b.streams]
            mine = self.held(len(order))
            returned = np.flatnonzero((order >= mine.start) & (order < mine.stop))
            index = torch.from_numpy(order[returned] - mine.start)
            i = skip
            while i < len(order):
                size = b.batch_size if total is None else min(b.batch_size, total - (at - filled))
                n = min(size - filled, len(order) - i)
                lo, hi = np.searchsorted(returned, [i, i + n])
                rows.append(torch.empty(hi - lo, sum(s.width for s in b.streams)))
                take(tensors, index[lo:hi], rows[-1])
                batch_index.append(torch.from_numpy(returned[lo:hi] - i + filled))
                filled, i, at = filled + n, i + n, at + n
                if filled == size:
                    yield LocalRows(torch.cat(rows), torch.cat(batch_index), size)
                    rows, batch_index, filled = [], [], 0
                    if total is not None and at >= total:
                        return
