"""Which rows of a batch are trained on: wrong ones are errors, extreme ones are left out and counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.errors import ConfigError, NonFiniteError, UserError
from sae.parallel import SINGLE_PROCESS, Ranks


def check_rows(x: Tensor, d_in: int, *, where: str) -> None:
    """Raise unless ``x`` is [B, d_in] with at least one row and finite throughout; the message names ``where`` and the
    row.
    """
    if x.ndim != 2 or x.shape[1] != d_in:
        raise ConfigError(
            f"{where}: rows of shape {tuple(x.shape)}, expected [rows, {d_in}]. Set the width to that of the store's"
            " hook."
        )
    if len(x) == 0:
        raise ConfigError(f"{where}: an empty batch. Give at least one row [rows, {d_in}].")
    if not torch.isfinite(x.sum()):  # one cheap pass; a finite sum cannot hide NaN or infinity
        bad = (~torch.isfinite(x)).any(1).nonzero().flatten()
        if len(bad):
            shown = ", ".join(str(i) for i in bad[:5].tolist())
            raise NonFiniteError(
                f"{where}: {len(bad)} of {len(x)} rows hold NaN or infinity (rows {shown}). Check the store, or the"
                " model that made it."
            )


def median_norm(x: Tensor) -> float:
    """Median length of the rows: the reference norm for outliers, taken once from the first batch."""
    return float(torch.linalg.vector_norm(x, dim=1).median())


def inlier_mask(x: Tensor, reference_norm: float, factor: float) -> Tensor | None:
    """[B] bool, False for rows longer than ``factor`` yardsticks (attention sinks and the like), or None where all are
    ordinary.
    """
    if factor <= 0:
        return None
    keep = torch.linalg.vector_norm(x, dim=1) <= factor * reference_norm
    return None if bool(keep.all()) else keep


@dataclass(frozen=True)
class LocalRows:
    """The rows of a batch that this process holds.

    Attributes:
        rows: [n, d_in]. batch_index: [n] int64, where each of them stands in the batch; None where they are all of it.
        batch_size: rows of the whole batch over all processes. problem: why the batch could not be read here, or None.
    """

    rows: Tensor
    batch_index: Tensor | None
    batch_size: int
    problem: UserError | None = None  # to be raised in all processes at once

    @classmethod
    def of_batch(cls, x: Tensor | LocalRows, keep: Tensor | None, ranks: Ranks) -> LocalRows:
        """This process's rows of a batch that all have, or have their shares of; ``keep`` [B] bool speaks of the whole
        batch.
        """
        if isinstance(x, LocalRows):
            share = x
        elif ranks.data == 1:
            share = cls(x, None, len(x))
        else:
            start, stop = (len(x) * (ranks.data_rank + i) // ranks.data for i in (0, 1))
            share = cls(x[start:stop], torch.arange(start, stop), len(x))
        if keep is None:
            return share
        return share._only(keep if share.batch_index is None else keep[share.batch_index])

    def checked(self, d_in: int, where: str) -> LocalRows:
        """The same, with what is wrong with its rows; a single process raises that at once (see :func:`check_rows`)."""
        if self.batch_index is None:
            check_rows(self.rows, d_in, where=where)
            return self
        try:
            if len(self.rows):
                check_rows(self.rows, d_in, where=where)
        except UserError as e:
            return LocalRows(self.rows[:0], self.batch_index[:0], self.batch_size, e)
        return self

    def without(self, reference_norm: float, factor: float) -> LocalRows:
        """The same without outliers; see :func:`ordinary`."""
        usual = inlier_mask(self.rows, reference_norm, factor)
        return self if usual is None else self._only(usual)

    def to(self, device: torch.device) -> LocalRows:
        """The same on another device."""
        return LocalRows(
            self.rows.to(device),
            None if self.batch_index is None else self.batch_index.to(device),
            self.batch_size,
            self.problem,
        )

    def _only(self, kept: Tensor) -> LocalRows:
        return LocalRows(
            self.rows[kept], None if self.batch_index is None else self.batch_index[kept], self.batch_size, self.problem
        )


@dataclass(frozen=True)
class StepRows:
    """The rows one process trains on in a step, and where they stand among those of all processes.

    Attributes:
        x: [n, d_in]. total: rows trained on by all. masked: rows left out by all.
        order: [n] places of these rows among the ``total``; None: they are all there are.
    """

    x: Tensor
    total: int
    masked: int
    order: Tensor | None = None
    ranks: Ranks = SINGLE_PROCESS

    @classmethod
    def of_all(cls, share: LocalRows, ranks: Ranks) -> StepRows:
        """What is left of a batch after every process has left out what it must.

        Raises:
            UserError: what any process found wrong with its rows.
        """
        if share.batch_index is None:
            return cls(share.rows, len(share.rows), share.batch_size - len(share.rows))
        contributed = torch.zeros(share.batch_size + 1, dtype=torch.int64, device=share.rows.device)
        contributed[share.batch_index] = 1
        contributed[-1] = share.problem is not None
        contributed = ranks.all_reduce_data(contributed)
        if int(contributed[-1]):
            ranks.raise_everywhere(share.problem)
        counted = contributed[:-1].cumsum(0)
        total = int(counted[-1])
        return cls(share.rows, total, share.batch_size - total, counted[share.batch_index] - 1, ranks)

    def nth(self, every: int) -> Tensor | None:
        """Which of these rows are every n-th of the whole batch, ascending; None where that is every n-th of these."""
        return None if self.order is None else (self.order % every == 0).nonzero().flatten()

    def spread(self, values: Tensor) -> Tensor:
        """[total, ...]: one entry for each row of the whole batch, from those of these rows."""
        if self.order is None:
            return values
        return self.ranks.all_reduce_data(
            values.new_zeros(self.total, *values.shape[1:]).index_copy_(0, self.order, values)
        )

    def gathered(self) -> Tensor:
        """[total, d_in]: the rows of all processes."""
        return self.spread(self.x)

    def fetch(self, x: Tensor, chosen: Tensor) -> Tensor:
        """Rows ``chosen`` of the whole batch from the processes that hold them, ``x`` [n, D] being those of these."""
        if self.order is None:
            return x[chosen]
        where = self.order.new_full((self.total,), -1).index_copy_(
            0, self.order, torch.arange(len(x), device=x.device)
        )[chosen]
        out = x.new_zeros(len(chosen), x.shape[1])
        out[where >= 0] = x[where[where >= 0]]
        return self.ranks.all_reduce_data(out)
