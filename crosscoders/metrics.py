"""A crosscoder's numbers source by source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscoders.model import Crosscoder
from sae.devices import wide
from sae.errors import UserError


@dataclass(frozen=True)
class SourceEvaluation:
    """On ``n`` rows: explained variance of every source (centred) and latents on per row at every source (their plain
    means are :attr:`ev` and :attr:`l0`), dead share, firings [F] (rows where a latent is on at any source).
    """

    n: int
    ev_S: tuple[float, ...]
    l0_S: tuple[float, ...]
    dead: float
    fired_F: Tensor

    @property
    def ev(self) -> float:
        """Mean explained variance over sources."""
        return sum(self.ev_S) / len(self.ev_S)

    @property
    def l0(self) -> float:
        """Mean number of latents on per row and source, as *Evolution of Concepts* counts it: a latent that a gate or
        a magnitude of zero closes at one of them is off there.
        """
        return sum(self.l0_S) / len(self.l0_S)


@torch.no_grad()
def evaluate_sources(cc: Crosscoder, batches: Iterable[Tensor]) -> SourceEvaluation:
    """Stream raw rows [B, D] through a crosscoder. Sums are float64, so the result does not depend on the batching.

    Raises:
        UserError: no rows.
    """
    S, n = len(cc.widths), 0
    active = torch.zeros(S, dtype=torch.int64)
    error, square = torch.zeros(S, dtype=torch.float64), torch.zeros(S, dtype=torch.float64)
    total = torch.zeros(cc.d_in, dtype=torch.float64)
    fired = torch.zeros(cc.d_sae, dtype=torch.int64)
    shift: Tensor | None = None
    for x in batches:
        y, parts, indices = cc.reconstructed_by_source(x)
        exact = wide(x)
        shift = exact.mean(0) if shift is None else shift
        residual, centred = exact - wide(y), exact - shift
        error += torch.stack([p.square().sum() for p in cc.split(residual)]).cpu()
        square += torch.stack([p.square().sum() for p in cc.split(centred)]).cpu()
        total += centred.sum(0).cpu()
        on = torch.stack([f > 0 for f in parts])
        active += on.flatten(1).sum(1).cpu()
        fired += torch.bincount(indices[on.any(0)], minlength=cc.d_sae).cpu()
        n += len(x)
    if n == 0:
        raise UserError("no rows to evaluate on: the batches are empty. Give at least one row.")
    variance = square - torch.stack([p.square().sum() for p in cc.split(total)]) / n
    ev = torch.where(variance > 0, 1 - error / variance, torch.full_like(error, float("nan")))
    l0_S = tuple((active.double() / n).tolist())
    return SourceEvaluation(n, tuple(ev.tolist()), l0_S, float((fired == 0).double().mean()), fired)
