"""Which latents of a crosscoder are on, and what that costs in the loss.

n_si is the norm of latent i's decoder row at source s, in training scale; z the one shared pre-activation.

- :class:`NormTopK`    the k largest of z_i sum_s n_si in each row
- :class:`BatchTopK`   the k * B largest of z_i sum_s n_si in the batch; a running threshold outside training
                       (Minder et al. 2025, arXiv 2504.02922)
- :class:`L1`          f = relu(z), penalty sum_i f_i sum_s n_si (Anthropic 2024, *Sparse Crosscoders*)
- :class:`JumpReLU`    f = z 1[z > t] and the tanh-quad penalty sum_i p_i (1 + p_i / s), p_i = mean tanh(c f_i n_si) over batch
                       and sources (*Evolution of Concepts*, arXiv 2509.17196). With ``per_source`` the gate opens at each
                       source apart, f_si = z_i 1[z_i n_si > t_i], as the published code of that paper does.

The first two keep a fixed number of latents and have sparse gradients; the last two have dense ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae.activation import TopK
from sae.threshold import Threshold

if TYPE_CHECKING:
    from sae.model import SAE


@dataclass(frozen=True)
class NormTopK(TopK):
    """Top-K under the weights sum_s n_si. Folding multiplies them into the encoder and leaves a plain Top-K."""

    def selection_weights(self, model: SAE) -> Tensor | None:
        return model.decoder_norms().sum(0)  # type: ignore[operator]

    def fold(self, factor_F: Tensor) -> TopK:
        return TopK(self.k)


@dataclass(frozen=True)
class BatchTopK(NormTopK):
    """Top k * B of the batch while training; ``decay`` is that of the running minimum of the kept scores, used elsewhere."""

    decay: float = 0.99

    def fold(self, factor_F: Tensor) -> TopK:
        return Threshold(self.k)


@dataclass(frozen=True)
class L1(Threshold):
    """ReLU with the sum-of-norms penalty, weight ``coefficient``; the error is summed over all sources' dimensions."""

    coefficient: float = 2.0


@dataclass(frozen=True)
class JumpReLU(Threshold):
    """Learnt thresholds and the tanh-quad penalty; the error is summed over a source's dimensions, averaged over sources."""

    coefficient: float = 0.3
    window: float = 4.0
    c: float = 4.0
    s: float = 0.01
    per_source: bool = False

    def fold(self, factor_F: Tensor) -> TopK:
        return self if self.per_source else Threshold(self.k)

    def cfg(self) -> dict[str, Any]:
        return {"gate": "per-source"} if self.per_source else {}


class JumpStep(torch.autograd.Function):
    """z 1[z > t] with dz = g 1[z > t] and dt = -sum g (t / window) 1[|z - t| < window / 2, z > 0] (rectangle kernel)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, window: float) -> Tensor:
        ctx.save_for_backward(z, t)
        ctx.window = window
        return torch.where(z > t, z, torch.zeros_like(z))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (z, t) = grads, ctx.saved_tensors
        near = ((z - t).abs() < ctx.window / 2) & (z > 0)
        gt = -(g * near * (t / ctx.window)).sum_to_size(t.shape)
        return g * (z > t), gt, None
