"""Rows of massive activation, and which population a number stands on.

In real models a few rows (the first token, some separators) are tens of times longer than the others and hold a large
part of the squared norm of all (*massive activations*, Sun et al. 2024, arXiv 2402.17762). Training leaves them out
(``outlier_factor`` median norms); a number over all rows is then mostly a number about them. So both are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.devices import wide_home
from sae.errors import UserError

FACTOR = 10.0  # median norms; the default of training's ``outlier_factor``


@dataclass(frozen=True)
class Populations:
    """How many of ``n`` rows are massive, longer than ``FACTOR`` times ``reference_norm`` (the median of these rows),
    and what share of the squared norm they hold.
    """

    n: int
    n_massive: int
    square_share: float
    reference_norm: float

    @property
    def n_inliers(self) -> int:
        """Rows that are not massive."""
        return self.n - self.n_massive

    @property
    def limit(self) -> float:
        """The norm above which a row is massive."""
        return FACTOR * self.reference_norm

    def inliers(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The batches without massive rows; batches of which nothing is left are not given."""
        for batch in batches:
            kept = batch[(norms(batch) <= self.limit).to(batch.device)]
            if len(kept):
                yield kept


def norms(x: Tensor) -> Tensor:
    """[...] length of each row of [..., D], in float64: squares of massive rows leave float32's digits behind."""
    return torch.linalg.vector_norm(x.to(wide_home(x.device)), dim=-1, dtype=torch.float64)


def populations(batches: Iterable[Tensor]) -> Populations:
    """Count the massive rows of [B, D] batches.

    Raises:
        UserError: no rows.
    """
    parts = [norms(batch).cpu() for batch in batches]
    if not parts:
        raise UserError("no rows to look for massive activations in: the batches are empty. Give at least one row.")
    return populations_of(torch.cat(parts))


def populations_of(lengths: Tensor) -> Populations:
    """The same from the rows' lengths [n]."""
    reference = float(lengths.median())
    massive = lengths > FACTOR * reference
    square = lengths.double().square()
    share = float(square[massive].sum() / square.sum()) if bool(massive.any()) else 0.0
    return Populations(len(lengths), int(massive.sum()), share, reference)
