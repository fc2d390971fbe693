"""Shuffled batches for training, from disk, with a bounded buffer and the next group read ahead (``ahead``).

The batch at a step is a pure function of the contract (see :mod:`workbench.activations.read.shuffle`) and the step. The
state of an iteration is two integers, (epoch, row within the epoch); going on elsewhere costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from sae.errors import UsageError
from workbench.activations.format.errors import ResumeMismatch
from workbench.activations.format.spec import STORED, StoreSpec, Stream, differences
from workbench.activations.read.pool import ShardPool
from workbench.activations.read.prefetch import GroupReader
from workbench.activations.read.shuffle import GROUP_ROWS, Order

if TYPE_CHECKING:
    from workbench.activations.read.shared import SharedBatches

THREADS = 8
MEMORY_LIMIT = 512 << 20
"""Bytes of the two buffers, unless another limit is asked for."""
Split = Literal["train", "heldout", "all"]


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
    content: str = ""  # digest of the store's shards

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
        from workbench.activations.read.shared import SharedBatches

        return SharedBatches(self, part, parts)

    def state(self, step: int) -> dict[str, int]:
        """The two integers that say where step ``step`` begins."""
        epoch, row = divmod(step * self.batch_size, self.order.epoch_rows)
        return {"epoch": epoch, "row": row}

    def contract(self) -> dict[str, Any]:
        """Everything that decides the batches, to be kept in a checkpoint."""
        return {
            "store_id": self.store_id,
            "store_content": self.content,
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
            lines = "; ".join(
                f.replace("the store has", "the checkpoint has").replace("the request", "this run") for f in found[:4]
            )
            raise ResumeMismatch(
                f"the data order differs from the interrupted run's: {lines}. Give the same settings, or allow a new"
                " order (then rows may repeat)."
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


def make_order(
    spec: StoreSpec,
    streams: Sequence[Stream],
    *,
    seed: int,
    split: Split = "train",
    window: int = 0,
    memory_limit: int = MEMORY_LIMIT,
    skipped: tuple[tuple[int, int], ...] = (),
) -> Order:
    """The order of a split.

    Groups hold :data:`~workbench.activations.read.shuffle.GROUP_ROWS` rows, fewer where memory is short.
    """
    ranges = {"train": (0, spec.train_rows), "heldout": (spec.train_rows, spec.n_rows), "all": (0, spec.n_rows)}
    if split not in ranges:
        raise UsageError(f"split {split!r} is not one of train, heldout, all")
    row_bytes = sum(s.width for s in streams) * spec.itemsize
    group_rows = max(spec.block_rows, min(GROUP_ROWS, memory_limit // (2 * row_bytes)))
    first, last = ranges[split]
    return Order(spec.rows_per_shard, spec.n_rows, first, last, spec.block_rows, seed, group_rows, window, skipped)
