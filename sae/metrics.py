"""The numbers of a reconstruction, each defined once: the trainer, reports and pages ask here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.devices import wide
from sae.errors import UserError
from sae.model import SAE
from sae.parallel import SINGLE_PROCESS, Ranks


def fvu(x_BD: Tensor, y_BD: Tensor, ranks: Ranks = SINGLE_PROCESS, n: int | None = None) -> Tensor:
    """Fraction of variance unexplained, centred: ``sum |x - y|^2 / sum |x - mean(x)|^2`` over these rows. EV = 1 - FVU.

    With ``ranks`` over the ``n`` rows of all processes.
    """
    mean = mean_row(x_BD, ranks, n)
    return ranks.all_reduce_data((x_BD - y_BD).square().sum()) / ranks.all_reduce_data((x_BD - mean).square().sum())


def mean_row(x_BD: Tensor, ranks: Ranks = SINGLE_PROCESS, n: int | None = None) -> Tensor:
    """[D] the mean of these rows, or with ``ranks`` of the ``n`` rows of all processes."""
    return x_BD.mean(0) if n is None or ranks.data == 1 else ranks.all_reduce_data(x_BD.sum(0)) / n


def l0(values_BK: Tensor, ranks: Ranks = SINGLE_PROCESS, n: int | None = None) -> Tensor:
    """Mean number of active latents per row, from kept values (zero = not active).

    With ``ranks`` over the ``n`` rows of all processes.
    """
    if n is None or ranks.world == 1:
        return (values_BK > 0).sum(-1).float().mean()
    return ranks.all_reduce((values_BK > 0).sum()).float() / n


@dataclass(frozen=True)
class Evaluation:
    """A dictionary on ``n`` rows. ``dead`` is the share of latents that never fired on them."""

    n: int
    fvu: float
    l0: float
    dead: float
    fired_F: Tensor

    @property
    def ev(self) -> float:
        """Explained variance, centred."""
        return 1 - self.fvu


@torch.no_grad()
def evaluate(sae: SAE, batches: Iterable[Tensor]) -> Evaluation:
    """Stream raw rows [B, d_in] through a dictionary (a transcoder's hold the output beside). Sums are float64, so the
    result does not depend on the batching.

    Raises:
        UserError: no rows, or rows without variance.
    """
    n, error, active = 0, 0.0, 0
    total = torch.zeros(sae.d_out, dtype=torch.float64)
    square, fired = 0.0, torch.zeros(sae.d_sae, dtype=torch.int64)
    shift = None
    for batch in batches:
        x, target = sae.pair(batch)
        y, values, indices = sae.reconstructed(x)
        xd, skip = wide(target), sae.skip(x)
        error += float((xd - wide(y if skip is None else y + skip)).square().sum())
        shift = xd.mean(0) if shift is None else shift  # keeps the difference of large sums small
        total += (xd - shift).sum(0).cpu()
        square += float((xd - shift).square().sum())
        on = values > 0
        active += int(on.sum())
        fired += torch.bincount(indices[on], minlength=sae.d_sae).cpu()
        n += len(x)
    if n == 0:
        raise UserError("no rows to evaluate on: the batches are empty. Give at least one row.")
    variance = square - float(total.square().sum()) / n
    if variance <= 0:
        raise UserError(
            "the rows to evaluate on are all the same: explained variance is not defined there. Give rows of other"
            " tokens or of another hook."
        )
    return Evaluation(n, error / variance, active / n, float((fired == 0).double().mean()), fired)
