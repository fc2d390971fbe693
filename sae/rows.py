"""Which rows of a batch are trained on: wrong ones are errors, extreme ones are left out and counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae.errors import ConfigError, NonFiniteError, UserError
from sae.parallel import ALONE, Ranks


def check_rows(x: Tensor, d_in: int, *, where: str) -> None:
    """Raise unless ``x`` is [B, d_in] with at least one row and finite throughout.

    The message names ``where`` and the row.
    """
    if x.ndim != 2 or x.shape[1] != d_in:
        raise ConfigError(
            f"{where}: rows of shape {tuple(x.shape)}, expected [rows, {d_in}]. Set the width to that of the store's"
            " hook."
        )
    if len(x) == 0:
        raise ConfigError(f"{where}: an empty batch.")
    if not torch.isfinite(x.sum()):  # one cheap pass; a finite sum cannot hide NaN or infinity
        bad = (~torch.isfinite(x)).any(1).nonzero().flatten()
        if len(bad):
            shown = ", ".join(str(i) for i in bad[:5].tolist())
            raise NonFiniteError(
                f"{where}: {len(bad)} of {len(x)} rows hold NaN or infinity (rows {shown}). Check the store, or the"
                " model that made it."
            )


def median_norm(x: Tensor) -> float:
    """Median length of the rows: the yardstick for outliers, taken once from the first batch."""
    return float(torch.linalg.vector_norm(x, dim=1).median())


def ordinary(x: Tensor, yardstick: float, factor: float) -> Tensor | None:
    """[B] bool, False for rows longer than ``factor`` yardsticks (attention sinks and the like), or None where all are
    ordinary.
    """
    if factor <= 0:
        return None
    keep = torch.linalg.vector_norm(x, dim=1) <= factor * yardstick
    return None if bool(keep.all()) else keep


@dataclass(frozen=True)
class Share:
    """One process's part of a batch of ``of`` rows: ``rows`` [n, d_in], their ``places`` [n] in it (int64; None.

    They are all of it).
    """

    rows: Tensor
    places: Tensor | None
    of: int
    problem: UserError | None = None  # to be raised in all processes at once

    @classmethod
    def of_batch(cls, x: Tensor | Share, keep: Tensor | None, ranks: Ranks) -> Share:
        """This process's rows of a batch that all have, or have their shares of.

        ``keep`` [B] bool speaks of the whole batch.
        """
        if isinstance(x, Share):
            share = x
        elif ranks.data == 1:
            share = cls(x, None, len(x))
        else:
            start, stop = (len(x) * (ranks.data_rank + i) // ranks.data for i in (0, 1))
            share = cls(x[start:stop], torch.arange(start, stop), len(x))
        if keep is None:
            return share
        return share._only(keep if share.places is None else keep[share.places])

    def checked(self, d_in: int, where: str) -> Share:
        """The same, with what is wrong with its rows; a single process raises that at once (see :func:`check_rows`)."""
        if self.places is None:
            check_rows(self.rows, d_in, where=where)
            return self
        try:
            if len(self.rows):
                check_rows(self.rows, d_in, where=where)
        except UserError as e:
            return Share(self.rows[:0], self.places[:0], self.of, e)
        return self

    def without(self, yardstick: float, factor: float) -> Share:
        """The same without outliers; see :func:`ordinary`."""
        usual = ordinary(self.rows, yardstick, factor)
        return self if usual is None else self._only(usual)

    def to(self, device: torch.device) -> Share:
        """The same on another device."""
        return Share(
            self.rows.to(device), None if self.places is None else self.places.to(device), self.of, self.problem
        )

    def _only(self, kept: Tensor) -> Share:
        return Share(self.rows[kept], None if self.places is None else self.places[kept], self.of, self.problem)


@dataclass(frozen=True)
class Part:
    """The rows one process trains on in a step, and where they stand among those of all processes.

    Attributes:
        x: [n, d_in]. total: rows trained on by all. masked: rows left out by all.
        order: [n] places of these rows among the ``total``; None: they are all there are.
    """

    x: Tensor
    total: int
    masked: int
    order: Tensor | None = None
    ranks: Ranks = ALONE

    @classmethod
    def of_all(cls, share: Share, ranks: Ranks) -> Part:
        """What is left of a batch after every process has left out what it must.

        Raises:
            UserError: what any process found wrong with its rows.
        """
        if share.places is None:
            return cls(share.rows, len(share.rows), share.of - len(share.rows))
        told = torch.zeros(share.of + 1, dtype=torch.int64, device=share.rows.device)
        told[share.places] = 1
        told[-1] = share.problem is not None
        told = ranks.sum_data(told)
        if int(told[-1]):
            ranks.agree(share.problem)
        counted = told[:-1].cumsum(0)
        total = int(counted[-1])
        return cls(share.rows, total, share.of - total, counted[share.places] - 1, ranks)

    def nth(self, every: int) -> Tensor | None:
        """Which of these rows are every n-th of the whole batch, ascending; None where that is every n-th of these."""
        return None if self.order is None else (self.order % every == 0).nonzero().flatten()

    def spread(self, values: Tensor) -> Tensor:
        """[total, ...]: one entry for each row of the whole batch, from those of these rows."""
        if self.order is None:
            return values
        return self.ranks.sum_data(values.new_zeros(self.total, *values.shape[1:]).index_copy_(0, self.order, values))

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
        return self.ranks.sum_data(out)
