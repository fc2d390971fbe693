"""Activations that pay for their sparsity in the loss: L1 and JumpReLU. The number of active latents differs from row
to row.

- :class:`L1`        f = relu(z), penalty sum_i f_i n_i (Anthropic, *Circuits Updates* April 2024;
                crosscoders: the sum over sources)
- :class:`JumpReLU`  f = z 1[z > t], thresholds learnt by a rectangle-window straight-through estimator. Its penalty is
  one of

  ``tanh-quad``  sum_i p_i (1 + p_i / s), p_i = mean tanh(c f_i n_i) over batch and sources (*Evolution of Concepts*,
  arXiv 2509.17196) ``tanh``       sum_i p_i (Anthropic, *Circuits Updates* January 2025)
  ``l0``         the mean number of active latents (Rajamanoharan et al. 2024, arXiv 2407.14435; Gemma Scope, arXiv
                 2408.05147)
  ``l0-target``  (that number / k - 1)^2 (the same paper's loss for a chosen sparsity)

The trainer's own error term is the mean over B and D of rows whose mean square is about one. Penalties that their
papers state beside an error summed over rows of length sqrt(D) are divided by D; those of the L0 kind are stated for
rows of length one and are not. Gradients are dense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sae.activation import Reconstruction, Threshold
from sae.backends.base import bag
from sae.batch import kth_largest
from sae.encode import strongest_dead

if TYPE_CHECKING:
    from sae.encode import StepPlan
    from sae.protocols import Weights


Penalty = Literal["tanh-quad", "tanh", "l0", "l0-target"]


@dataclass(frozen=True)
class L1(Threshold):
    """ReLU with the sum-of-norms penalty, weight ``coefficient``, grown from 0 over ``warmup`` steps (None: as long as
    the learning rate grows).

    At full weight from the first step it closes latents that have not learnt anything yet: on planted features F1 at
    the end was .47 so and .53 with the warm-up (``tests/sae/test_recovery.py``).
    """

    architecture: str = "standard"
    coefficient: float = 2.0
    warmup: int | None = 0
    folds_norms: ClassVar[bool] = True

    def attach(self, model: Weights) -> None:
        super().attach(model)
        model.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def reconstruct(self, model: Weights, x_BD: Tensor, plan: StepPlan, target_BD: Tensor) -> Reconstruction:
        z = dense(model, x_BD)
        f = z.relu()
        cost = batch_mean(f.sum(0) * torch.stack(norms(model)).sum(0), plan, len(f))
        penalty = plan.ranks.all_reduce_latents((self.weight(model) * cost).sum()) / sum(model.blocks)
        return everything(f, penalty, decoded(model, f, plan), of_dead(model, z, plan))

    def weight(self, model: Weights) -> Tensor:
        """[F] weight of each latent's penalty now; counts the step."""
        length = model.warm_up if self.warmup is None else self.warmup
        warm = 1.0 if not length else min(1.0, (int(model.steps) + 1) / length)
        if model.training:
            model.steps += 1
        return self.coefficient * warm * model.penalty_shares()


@dataclass(frozen=True)
class JumpReLU(L1):
    """Learnt thresholds: ``threshold`` at the start (None: where k latents of the first rows are on), their logarithms
    at ``threshold_rate`` times the learning rate.

    ``window`` is the width of the straight-through window, ``penalty`` one of those in the module docstring. Decoders
    keep unit norm under the L0 penalties, which do not see their length.
    """

    architecture: str = "jumprelu"
    coefficient: float = 0.3
    window: float = 4.0
    c: float = 4.0
    s: float = 0.01
    threshold: float | None = 0.1
    threshold_rate: float = 1.0
    penalty: Penalty = "tanh-quad"

    @property
    def unit_decoders(self) -> bool:  # type: ignore[override]
        return self.penalty.startswith("l0")

    def attach(self, model: Weights) -> None:
        super().attach(model)
        model.log_threshold_F = nn.Parameter(torch.zeros(model.d_sae, dtype=model.enc_FD.dtype))

    def thresholds(self, model: Weights) -> Tensor | None:
        return self.learnt(model)

    def learnt(self, model: Weights) -> Tensor:
        """[F] thresholds in training scale, with gradients."""
        first = 1.0 if self.threshold is None else self.threshold
        return first * torch.exp(self.threshold_rate * model.log_threshold_F)

    @torch.no_grad()
    def begin(self, model: Weights, z_BF: Tensor) -> None:
        """Thresholds where k latents are on per row, as a batch Top-K would have it.

        Far more would have to be closed before any of them has learnt something; of far fewer most would never open.
        They lie midway between the last pre-activation that is on and the next: on one of the two, rounding would
        decide whether it is on, and two machines would train apart from the first step.
        """
        if self.threshold is None:  # every process sees all of these rows
            scores, on = z_BF.clamp_min(0).flatten(), self.k * len(z_BF) * model.ranks.data
            level = (kth_largest(scores, on, model.ranks) + kth_largest(scores, on + 1, model.ranks)) / 2
            self.raise_thresholds(model, float(level.clamp_min(1e-6)))

    @torch.no_grad()
    def raise_thresholds(self, model: Weights, factor: float) -> None:
        """Multiply those that come from the rows by a factor, as their encoders are."""
        if self.threshold is None:
            model.log_threshold_F.add_(math.log(factor) / self.threshold_rate)

    def reconstruct(self, model: Weights, x_BD: Tensor, plan: StepPlan, target_BD: Tensor) -> Reconstruction:
        z, t = dense(model, x_BD), self.learnt(model)
        f = JumpStep.apply(z, t, self.window)
        if self.penalty.startswith("l0"):
            share = batch_mean(JumpCount.apply(z, t, self.window), plan, len(f))
            return everything(f, self.count(model, share, plan), decoded(model, f, plan), of_dead(model, z, plan))
        sizes = norms(model)
        rows, columns = f.detach().nonzero(as_tuple=True)  # tanh only where it is not zero ...
        on = f[rows, columns]
        p = (
            self.c * torch.stack(sizes).sum(0) * (f * (f.detach() == 0)).sum(0)
        )  # ... its slope there moves thresholds all the same
        for n in sizes:
            p = p.index_add(0, columns, torch.tanh(self.c * on * n[columns]))
        penalty = self.quad(model, batch_mean(p, plan, len(f)) / len(sizes), plan)
        return everything(f, penalty, decoded(model, f, plan), of_dead(model, z, plan))

    def quad(self, model: Weights, p_F: Tensor, plan: StepPlan) -> Tensor:
        """The tanh or tanh-quad penalty of mean activities p [F]."""
        cost = p_F * (1 + p_F / self.s) if self.penalty == "tanh-quad" else p_F
        return plan.ranks.all_reduce_latents((self.weight(model) * cost).sum()) * len(model.blocks) / sum(model.blocks)

    def count(self, model: Weights, share_F: Tensor, plan: StepPlan) -> Tensor:
        """The L0 penalty of firing shares [F]."""
        weight, ranks = self.weight(model), plan.ranks
        if self.penalty == "l0":
            return ranks.all_reduce_latents((weight * share_F).sum())
        return (
            ranks.all_reduce_latents(weight.mean())
            / ranks.latents
            * (ranks.all_reduce_latents(share_F.sum()) / self.k - 1).square()
        )


class JumpCount(torch.autograd.Function):
    """[F] number of rows with z > t, and dt = -g sum 1[|z - t| < window / 2] / window (rectangle).

    Nothing flows to z.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, t: Tensor, window: float) -> Tensor:
        ctx.save_for_backward(z, t)
        ctx.window = window
        return (z > t).to(z.dtype).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, t = ctx.saved_tensors
        near = ((z - t).abs() < ctx.window / 2).to(z.dtype).sum(0)
        return None, -grads[0] * near / ctx.window, None


class JumpStep(torch.autograd.Function):
    """z 1[z > t] with dz = g 1[z > t] and dt = -sum g (t / window) 1[|z - t| < window / 2, z > 0] (rectangle)."""

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


def dense(model: Weights, x_BD: Tensor) -> Tensor:
    """z [B, F] of rows in training scale."""
    return torch.addmm(model.bias(), x_BD, model.enc_FD.t())


def norms(model: Weights) -> list[Tensor]:
    """Decoder norms [F] of each block, with gradients: the penalties act on them."""
    return [torch.linalg.vector_norm(b, dim=1).clamp_min(1e-12) for b in model.dec_FD.split(model.blocks, dim=1)]


def batch_mean(sum_F: Tensor, plan: StepPlan, n: int) -> Tensor:
    """The mean over the rows of all processes, from the sum over the ``n`` rows of this one."""
    return plan.ranks.all_reduce_data(sum_F) / (plan.rows or n)


def own_bias(model: Weights, plan: StepPlan) -> Tensor:
    """The decoder's bias in the first of several parts of a dictionary, zeros in the others: their reconstructions are
    summed.
    """
    return torch.zeros_like(model.b_dec) if plan.ranks.latents_rank else model.b_dec


def decoded(model: Weights, f: Tensor, plan: StepPlan) -> Tensor:
    """The reconstruction [B, D] from dense codes f [B, F], summed over the parts of the dictionary."""
    return plan.ranks.all_reduce_latents(torch.addmm(own_bias(model, plan), f, model.dec_FD))


def of_dead(model: Weights, z_BF: Tensor, plan: StepPlan) -> Tensor:
    """AuxK (Gao et al. 2024, appendix A.2): what the k_aux largest dead latents of every n-th row add up to [B', D].

    Empty without dead latents. Thresholds are left out: a latent behind one has no other gradient to bring it back.
    """
    found = strongest_dead(z_BF.detach(), plan)
    if found is None:
        return z_BF.new_zeros(0)
    scores, indices = found
    values = plan.for_aux(z_BF).gather(1, indices).clamp_min(0)
    values = torch.where(scores == -torch.inf, torch.zeros_like(values), values)  # another process has these
    return plan.ranks.all_reduce_latents(bag(values, indices, model.dec_FD))


def everything(f: Tensor, penalty: Tensor, y: Tensor, aux_y: Tensor | None = None) -> Reconstruction:
    """What the trainer needs of dense codes f [B, F] and the reconstructions [B, D] from them and from dead latents."""
    every = torch.arange(f.shape[1], device=f.device).expand(len(f), -1)
    return y, f.new_zeros(0) if aux_y is None else aux_y, f, every, penalty
