"""The one gate that only a crosscoder can have: each source opens its own.

f_si = z_i 1[z_i n_si > t_i] with n_si the norm of latent i's decoder row at source s in training scale, as the
published code of *Evolution of Concepts* (arXiv 2509.17196) does; its paper's shared gate is
:class:`sae.penalised.JumpReLU`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sae.activation import Activation, Reconstruction, Threshold
from sae.penalised import JumpReLU, JumpStep, batch_mean, dense, everything, norms, own_bias

if TYPE_CHECKING:
    from sae.encode import StepPlan
    from sae.protocols import Weights


@dataclass(frozen=True)
class PerSource(JumpReLU):
    """JumpReLU whose thresholds are compared with z_i n_si at each source; a latent is on where its loosest source
    opens.
    """

    architecture: str = "jumprelu-per-source"

    def thresholds(self, model: Weights) -> Tensor | None:
        if model.folded_in:
            return model.threshold_F
        return self.learnt(model) / model.decoder_norms().amax(0).clamp_min(1e-12)

    def fold(self, factor_F: Tensor) -> Activation:
        return self

    def cfg(self) -> dict[str, Any]:
        return {"gate": "per-source"}

    def reconstruct(self, model: Weights, x_BD: Tensor, plan: StepPlan, target_BD: Tensor) -> Reconstruction:
        z, t, sizes = dense(model, x_BD), self.learnt(model), norms(model)

        def one(z: Tensor, n: Tensor, t: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
            scored = JumpStep.apply(z * n, t, self.window)
            return (scored / n) @ block, torch.tanh(self.c * scored).sum(0)

        parts, p = [], torch.zeros_like(model.b_enc)
        for n, block in zip(sizes, model.dec_FD.split(model.blocks, dim=1), strict=True):
            y_s, p_s = checkpoint(
                one, z, n, t, block, use_reentrant=False
            )  # one (B, F) at a time, also for the backward pass
            parts.append(y_s)
            p = p + p_s / len(sizes)
        open_ = Threshold.thresholds(self, model) if model.folded_in else self.thresholds(model)
        assert open_ is not None
        f = torch.where(z.detach() > open_.detach(), z.detach(), torch.zeros_like(z))
        y = plan.ranks.all_reduce_latents(torch.cat(parts, dim=1) + own_bias(model, plan))
        return everything(f, self.quad(model, batch_mean(p, plan, len(z)), plan), y)
