"""How a crosscoder reconstructs while it trains: sparse and exact for Top-K and BatchTopK, dense for L1 and JumpReLU.

Each function takes rows in training scale [B, D] and a :class:`sae.step.StepPlan` and returns what the trainer needs:
(y [B, D], aux_y, values [B, K], indices [B, K], penalty or None). The trainer's own error term is the mean over B and D,
so penalties, which their papers state beside an error summed over dimensions, are divided accordingly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crosscoders.gates import L1, BatchTopK, JumpReLU, JumpStep
from sae.encode import StepPlan, encode
from sae.step import SparseStep

if TYPE_CHECKING:
    from crosscoders.model import Crosscoder

Reconstruction = tuple[Tensor, Tensor, Tensor, Tensor, "Tensor | None"]


def reconstruct(cc: Crosscoder, x: Tensor, plan: StepPlan) -> Reconstruction:
    """The reconstruction of rows in training scale under the crosscoder's own gate."""
    if isinstance(cc.activation, JumpReLU):
        return _per_source(cc, x) if cc.activation.per_source else _jump(cc, x)
    if isinstance(cc.activation, L1):
        return _l1(cc, x)
    if not isinstance(cc.activation, BatchTopK):
        return *SparseStep.apply(x, cc.enc_FD, cc.b_enc, cc.dec_FD, cc.b_dec, plan), None
    y, aux_y, values, indices = BatchStep.apply(x, cc.enc_FD, cc.b_enc, cc.dec_FD, cc.b_dec, plan, cc.candidates)
    cc.candidates = values.shape[1] + values.shape[1] // 2 + 8
    if cc.training:
        _follow_level(cc, values.detach(), indices, plan, cc.activation.decay)
    return y, aux_y, values, indices, None


class BatchStep(SparseStep):
    """:class:`sae.step.SparseStep` keeping the k * B highest scores of the batch; the gradients are those of the kept entries."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, plan: StepPlan, candidates: int
    ) -> tuple[Tensor, ...]:
        v, i, v_aux, i_aux = batch_top_k(x, W_enc, torch.addmv(b_enc, W_enc, b_dec, alpha=-1), plan, candidates)
        y = plan.backend.decode(v, i, W_dec).add_(b_dec)
        aux_y = x.new_zeros(0)
        if v_aux is not None and i_aux is not None:
            aux_y = plan.backend.decode(v_aux.clamp_min_(0), i_aux, W_dec)
        ctx.plan = plan
        ctx.save_for_backward(x, W_enc, W_dec, b_dec, v, i, v_aux, i_aux)
        ctx.mark_non_differentiable(i)
        ctx.set_materialize_grads(False)
        return y, aux_y, v, i

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return *SparseStep.backward(ctx, *grads), None


def batch_top_k(
    x: Tensor, W_enc: Tensor, bias: Tensor, plan: StepPlan, candidates: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Exactly the k * B highest positive scores of the batch, as (values, indices) [B, K] with K the fullest row's count.

    Each row offers its best ``candidates``; should a row use all of them, the search is repeated with twice as many, so the
    result does not depend on that number. (Half again as many as the fullest row of the last batch needed is seldom too few.)
    """
    weights = torch.ones_like(bias) if plan.selection_F is None else plan.selection_F
    width = min(max(candidates, plan.k + 1), len(bias))
    while True:
        v, i, v_aux, i_aux = encode(x, W_enc, bias, replace(plan, k=width))
        scores = v.clamp_min(0) * weights[i]
        cut = scores.flatten().kthvalue(max(1, scores.numel() - plan.k * len(x) + 1)).values
        on = (scores >= cut) & (scores > 0)
        counts = on.sum(1)
        if width == len(bias) or int(counts.max()) < width:
            break
        width = min(2 * width, len(bias))
    place = torch.topk(torch.where(on, scores, torch.zeros_like(scores)), max(1, int(counts.max())), dim=1, sorted=False).indices
    place = place.sort(dim=1).values  # latents ascending within a row, as the backends expect
    v, i = torch.where(on, v, torch.zeros_like(v)).gather(1, place), i.gather(1, place)
    return v.contiguous(), i.contiguous(), v_aux, i_aux


@torch.no_grad()
def _follow_level(cc: Crosscoder, values: Tensor, indices: Tensor, plan: StepPlan, decay: float) -> None:
    """Running minimum of the kept scores: the threshold for rows outside training."""
    assert plan.selection_F is not None
    on = values > 0
    if bool(on.any()):
        least = (values * plan.selection_F[indices])[on].min()
        cc.level.copy_(least if cc.level == 0 else decay * cc.level + (1 - decay) * least)


def _dense(cc: Crosscoder, x: Tensor) -> Tensor:
    return torch.addmm(cc.b_enc - cc.enc_FD @ cc.b_dec, x, cc.enc_FD.t())


def _norms(cc: Crosscoder) -> list[Tensor]:
    """Decoder norms per source, with gradients: the penalties act on them."""
    return [torch.linalg.vector_norm(b, dim=1).clamp_min(1e-12) for b in cc.dec_FD.split(cc.widths, dim=1)]


def _weight(cc: Crosscoder, coefficient: float) -> Tensor:
    """Penalty weight of each latent now: warm-up, and the discount of the shared ones."""
    warm = 1.0 if not cc.penalty_warmup else min(1.0, (int(cc.steps) + 1) / cc.penalty_warmup)
    if cc.training:
        cc.steps += 1
    weight = torch.full((cc.d_sae,), coefficient * warm, dtype=cc.enc_FD.dtype, device=cc.enc_FD.device)
    weight[: cc.shared_latents] *= cc.shared_penalty
    return weight


def _all(cc: Crosscoder, x: Tensor, y: Tensor, f: Tensor, penalty: Tensor) -> Reconstruction:
    return y, x.new_zeros(0), f, torch.arange(cc.d_sae, device=x.device).expand(len(x), -1), penalty


def _l1(cc: Crosscoder, x: Tensor) -> Reconstruction:
    f = _dense(cc, x).relu()
    cost = f.mean(0) * torch.stack(_norms(cc)).sum(0)
    return _all(cc, x, torch.addmm(cc.b_dec, f, cc.dec_FD), f, (_weight(cc, cc.activation.coefficient) * cost).sum() / cc.d_in)  # type: ignore[attr-defined]


def _quad(cc: Crosscoder, p: Tensor) -> Tensor:
    act = cc.activation
    assert isinstance(act, JumpReLU)
    return (_weight(cc, act.coefficient) * p * (1 + p / act.s)).sum() * len(cc.widths) / cc.d_in


def _jump(cc: Crosscoder, x: Tensor) -> Reconstruction:
    act = cc.activation
    assert isinstance(act, JumpReLU)
    f = JumpStep.apply(_dense(cc, x), cc.level_thresholds(), act.window)
    norms = _norms(cc)
    rows, columns = f.detach().nonzero(as_tuple=True)  # tanh only where it is not zero ...
    on = f[rows, columns]
    p = act.c * torch.stack(norms).sum(0) * (f * (f.detach() == 0)).sum(0)  # ... its slope there moves thresholds all the same
    for n in norms:
        p = p.index_add(0, columns, torch.tanh(act.c * on * n[columns]))
    p = p / (len(x) * len(cc.widths))
    return _all(cc, x, torch.addmm(cc.b_dec, f, cc.dec_FD), f, _quad(cc, p))


def _per_source(cc: Crosscoder, x: Tensor) -> Reconstruction:
    act = cc.activation
    assert isinstance(act, JumpReLU)
    z, t, norms = _dense(cc, x), cc.level_thresholds(), _norms(cc)

    def one(z: Tensor, n: Tensor, t: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
        scored = JumpStep.apply(z * n, t, act.window)
        return (scored / n) @ block, torch.tanh(act.c * scored).mean(0)

    parts, p = [], x.new_zeros(cc.d_sae)
    for n, block in zip(norms, cc.dec_FD.split(cc.widths, dim=1), strict=True):
        y_s, p_s = checkpoint(one, z, n, t, block, use_reentrant=False)  # one (B, F) at a time, also for the backward pass
        parts.append(y_s)
        p = p + p_s / len(norms)
    y = torch.cat(parts, dim=1) + cc.b_dec
    f = torch.where(z.detach() > cc.thresholds().detach(), z.detach(), torch.zeros_like(z))
    return _all(cc, x, y, f, _quad(cc, p))
