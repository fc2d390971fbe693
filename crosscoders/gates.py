"""The gates that only a crosscoder can have: a gate for each source, or a magnitude for each source behind one gate.

:class:`PerSource`: f_si = z_i 1[z_i n_si > t_i] with n_si the norm of latent i's decoder row at source s in training
scale, as the published code of *Evolution of Concepts* (arXiv 2509.17196) does; its paper's shared gate is
:class:`sae.penalised.JumpReLU`.

:class:`OwnMagnitude`: every source says how strong a latent is there, all of them together which k latents are on:

    f_si = m_i relu(W_si x_s + b_si),     m = the k latents of the largest  p_i = sqrt(sum_s (f_si n_si)^2)

One code for all sources must be the right magnitude at each of them at once, which costs more explained variance than
the common support does (``benchmarks/gap.py``). p_i, the length that latent i adds to the concatenated row, is the code
that everything sees which asks for one number per latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sae.activation import Activation, Reconstruction, Threshold, TopK
from sae.encode import strongest, strongest_dead
from sae.penalised import JumpReLU, JumpStep, batch_mean, dense, everything, norms, own_bias
from sae.step import SparseStep

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


class OwnStep(torch.autograd.Function):
    """:class:`sae.step.SparseStep` at one source, on latents that were chosen elsewhere.

    (x [B, D], W_enc, bias_F, W_dec, b_dec, indices [B, K], here [B, K], plan) -> (y [B, D], f [B, K]); ``here`` is
    False where another process holds the latent.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        indices: Tensor,
        here: Tensor,
        plan: StepPlan,
    ) -> tuple[Tensor, Tensor]:
        bias = torch.addmv(b_enc, W_enc, b_dec, alpha=-1)
        f = (plan.backend.dots(x, W_enc, indices) + bias[indices]).clamp_min_(0).mul_(here)
        y = plan.ranks.all_reduce_latents(plan.backend.decode(f, indices, W_dec)).add_(b_dec)
        ctx.plan = plan
        ctx.save_for_backward(x, W_enc, W_dec, b_dec, f, indices, None, None)
        ctx.set_materialize_grads(False)
        return y, f

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        of_y, of_f = grads
        return *SparseStep.backward(ctx, of_y, None, of_f, None)[:5], None, None, None


@dataclass(frozen=True)
class OwnMagnitude(TopK):
    """One support for all sources, a magnitude at each; see the module docstring.

    Two things would be free at every source: how a latent's length is shared between encoder and decoder there. Folding
    settles it: magnitudes get a root mean square of one over the rows where the latent is on (``usual_FS``, its running
    mean square while training), so that the norm of the decoder row at a source is what the latent usually adds there.
    The n_si by which latents compete are kept beside (``rank_FS``): decoders that are fitted anew change no code.
    """

    architecture: str = "topk-own-magnitude"
    unit_decoders: ClassVar[bool] = False
    decay: ClassVar[float] = 0.99

    def attach(self, model: Weights) -> None:
        own: Any = model
        shape = (own.d_sae, len(own.blocks))
        own.own_FS = nn.Parameter(torch.zeros(shape, dtype=own.enc_FD.dtype))
        own.register_buffer("usual_FS", torch.zeros(shape, dtype=own.enc_FD.dtype))
        own.register_buffer("rank_FS", torch.ones(shape, dtype=own.enc_FD.dtype))

    def reconstruct(self, model: Weights, x_BD: Tensor, plan: StepPlan, target_BD: Tensor) -> Reconstruction:
        own: Any = model
        with torch.no_grad():
            scores = own.strengths(x_BD).square_()
            kept, indices = strongest(scores, plan)
            dead = strongest_dead(scores, plan)
        y, f_SBK = self._sources(own, x_BD, indices, kept > 0, plan, own.b_dec)
        aux_y = x_BD.new_zeros(0)
        if dead is not None:
            rows, none = plan.for_aux(x_BD), own.b_dec.detach()
            aux_y = self._sources(own, rows, dead[1], dead[0] > -torch.inf, plan, none)[0] - none
        if own.training:
            self._follow(own, f_SBK.detach(), indices, plan)
        return y, aux_y, kept.clamp_min(0).sqrt(), indices, None

    def _sources(
        self, own: Any, x_BD: Tensor, indices: Tensor, here: Tensor, plan: StepPlan, b_dec: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(y [B, D], f [S, B, K]) of given latents, every source on its own."""
        parts = [t.split(own.blocks, dim=-1) for t in (x_BD, own.enc_FD, own.dec_FD, b_dec)]
        biases = (own.b_enc[:, None] + own.own_FS).unbind(1)
        both = [
            OwnStep.apply(x.contiguous(), enc.contiguous(), bias, dec.contiguous(), b, indices, here, plan)
            for x, enc, dec, b, bias in zip(*parts, biases, strict=True)
        ]
        return torch.cat([y for y, _ in both], dim=1), torch.stack([f for _, f in both])

    @torch.no_grad()
    def _follow(self, own: Any, f_SBK: Tensor, indices: Tensor, plan: StepPlan) -> None:
        flat, on = indices.flatten(), (f_SBK > 0).any(0).flatten()
        times = torch.zeros_like(own.b_enc).index_add_(0, flat, on.to(own.b_enc))
        square = torch.zeros_like(own.usual_FS).index_add_(0, flat, f_SBK.flatten(1).t().square())
        times, square = plan.ranks.all_reduce_data(times), plan.ranks.all_reduce_data(square)
        mean = square / times.clamp_min(1)[:, None]
        before = own.usual_FS
        first = (before == 0).all(1, keepdim=True)
        moved = torch.where(first, mean, self.decay * before + (1 - self.decay) * mean)
        before.copy_(torch.where(times[:, None] > 0, moved, before))

    def fold(self, factor_F: Tensor) -> Activation:
        return self
