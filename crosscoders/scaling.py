"""Latent scaling: how strongly a latent is present in a source, without asking the decoder norm.

The decoder norm sits inside the sparsity penalty, so training may shrink it to nothing where a latent still helps a
little (*complete shrinkage*), or leave it out because other latents cover it (*decoupling*). Minder et al. 2025
(arXiv 2504.02922) measure presence by least squares instead: for a latent's direction d and a target y_t of the source

    beta = argmin sum_t |beta f_t d - y_t|^2 = d . (sum_t f_t y_t) / (|d|^2 sum_t f_t^2)

with two targets: the *error* target, what the other latents leave over (x - x^ + f W_s), and the *reconstruction*
target, the reconstruction x^ without its bias. Ratios of betas between two sources are nu^eps and nu^r; a latent is
truly specific to one source where nu^eps < 0.2 and nu^r < 0.5 in the other.

Two directions are offered. ``reference``: one decoder row for all sources (usually the one of the latent's peak), as in
the paper; it needs equal widths. ``own``: each source's own row; beta_own * |W_s| is then the length that
reconstruction alone would give the row, and it does not punish a latent for turning.

Axes: B rows, S sources, F latents, D a source's width. One pass over rows accumulates two [F, sum(D)] sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.backends.base import code_sums
from sae.devices import wide


@dataclass(frozen=True)
class Scaling:
    """Betas of every latent at every source, both targets, [S, F]; NaN where the latent never fired or has no
    direction.

    ``own_norms`` [S, F]: the norm-free norms max(beta_own_error, 0) * |W_s|. ``n_fired`` [F].
    """

    error: Tensor
    reconstruction: Tensor
    own_error: Tensor
    own_norms: Tensor
    n_fired: Tensor

    def ratio(self, of: int, to: int) -> tuple[Tensor, Tensor]:
        """(nu^eps, nu^r) [F] of source ``of`` relative to source ``to``; NaN where the denominator is not positive."""

        def divide(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(b > 0, a / b, torch.full_like(a, float("nan")))

        return divide(self.error[of], self.error[to]), divide(self.reconstruction[of], self.reconstruction[to])


class ScalingMeter:
    """Accumulates the sums of latent scaling over batches, in whatever scale ``blocks`` and the rows share.

    Args:
        blocks: S decoder blocks [F, D_s].
        reference: per latent, the source whose row is the common direction ([F] int64, usually the peak); None where
            the widths differ, then ``error`` and ``reconstruction`` use each source's own row.
    """

    def __init__(self, blocks: list[Tensor], reference: Tensor | None = None):
        self.widths = [b.shape[1] for b in blocks]
        if reference is not None and len(set(self.widths)) > 1:
            raise ValueError(
                f"a direction common to all sources needs equal widths, and these have {self.widths}: leave reference"
                " out"
            )
        self.blocks = [wide(b.detach()) for b in blocks]
        self.reference = None if reference is None else reference.to(self.blocks[0].device)
        F, device = blocks[0].shape[0], self.blocks[0].device
        self.residual = torch.zeros(F, sum(self.widths), dtype=torch.float64, device=device)
        self.reconstruction = torch.zeros_like(self.residual)
        self.ff = torch.zeros(F, dtype=torch.float64, device=device)
        self.arrived = torch.zeros(
            len(blocks), F, dtype=torch.float64, device=device
        )  # sum_t f_t f_st, f_st what reaches source s
        self.n = torch.zeros(F, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(
        self,
        values: Tensor,
        indices: Tensor,
        x: Tensor,
        x_hat: Tensor,
        bias: Tensor,
        at: Sequence[Tensor] | None = None,
    ) -> None:
        """Add rows: codes ([B, k] values, indices; zero = not active), inputs and reconstructions [B, sum(D)], decoder
        bias.

        With a gate per source, ``at`` says what of the values reaches each source, S tensors [B, k]; None: all of it.
        """
        self.residual += wide(code_sums(values, indices, x - x_hat, len(self.ff)))
        self.reconstruction += wide(code_sums(values, indices, x_hat - bias, len(self.ff)))
        flat = indices.reshape(-1).to(self.ff.device)
        f = wide(values.reshape(-1))
        self.ff.index_add_(0, flat, f * f)
        for s in range(len(self.blocks)):
            self.arrived[s].index_add_(0, flat, f * (f if at is None else wide(at[s].reshape(-1))))
        self.n.index_add_(0, flat, (f > 0).long())

    def result(self) -> Scaling:
        """The betas of everything added so far."""
        never = self.ff <= 0
        out: dict[str, list[Tensor]] = {"error": [], "reconstruction": [], "own_error": [], "own_norms": []}
        rows = torch.arange(len(self.ff), device=self.ff.device)
        common = None if self.reference is None else torch.stack(self.blocks)[self.reference, rows]
        residuals, rebuilds = self.residual.split(self.widths, 1), self.reconstruction.split(self.widths, 1)
        for W, left_over, rebuilt, arrived in zip(self.blocks, residuals, rebuilds, self.arrived, strict=True):
            target = left_over + arrived[:, None] * W  # sum_t f_t (x - x^ + f_st W)
            direction = W if common is None else common
            out["error"].append(self._beta(direction, target, never))
            out["reconstruction"].append(self._beta(direction, rebuilt, never))
            own = self._beta(W, target, never)
            out["own_error"].append(own)
            out["own_norms"].append(own.clamp_min(0) * W.norm(dim=1))
        return Scaling(**{k: torch.stack(v).float() for k, v in out.items()}, n_fired=self.n)

    def _beta(self, direction: Tensor, target: Tensor, never: Tensor) -> Tensor:
        scale = direction.square().sum(1) * self.ff
        beta = (direction * target).sum(1) / scale
        return torch.where(never | (scale <= 0), torch.full_like(beta, float("nan")), beta)
