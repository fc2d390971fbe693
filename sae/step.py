"""One Top-K reconstruction and its exact gradients: one dense product forward, sparse arithmetic for everything else.

Forward, with kept set S_b of row b:  f = relu((x - b_dec) W_enc + b_enc)[S_b],  y = f W_dec + b_dec.
Without ``plan.centred`` b_dec is not subtracted from x, and W_dec may have another width than W_enc (transcoders).
Nothing of shape (B, F) outlives a tile of the forward pass, and no gradient of that shape is ever formed: the gradient
of a Top-K SAE touches kept entries only. Weights are (F, D), row-major, so each latent is one contiguous row.

AuxK (Gao et al. 2024, appendix A.2): the k_aux largest *dead* latents of a row reconstruct the residual the live ones
leave. Their pre-activations are columns of the same product, so no second one is needed, and their entries join the
kept ones in the two sums that make the weight gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.backends.base import Transposed
from sae.batch import batch_top_k
from sae.encode import StepPlan, encode


def _decode(plan: StepPlan, values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    """``sum_k values[b, k] * W_dec[indices[b, k]]``; rows of unequal length (BatchTopK) without the zeros that fill
    them up.
    """
    if not plan.candidates:
        return plan.backend.decode(values, indices, W_dec)
    on = values > 0
    ends = on.sum(1).cumsum(0)
    kept = values[on]
    each = Transposed(torch.arange(len(kept), device=values.device), torch.cat([ends.new_zeros(1), ends]))
    return plan.backend.scatter(each, kept, indices[on], W_dec)


class SparseStep(torch.autograd.Function):
    """(x, W_enc, b_enc, W_dec, b_dec, plan) -> (y [B, D], aux_y [ceil(B / aux_every), D], values, indices [B, K]).

    ``aux_y`` is empty without dead latents and carries no bias: it reconstructs the residual, which already has it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, plan: StepPlan
    ) -> tuple[Tensor, ...]:
        select = batch_top_k if plan.candidates else encode
        v, i, v_aux, i_aux = select(
            x, W_enc, torch.addmv(b_enc, W_enc, b_dec, alpha=-1) if plan.centred else b_enc, plan
        )
        y = plan.ranks.all_reduce_latents(_decode(plan, v.clamp_min_(0), i, W_dec)).add_(b_dec)
        aux_y = x.new_zeros(0)
        if v_aux is not None and i_aux is not None:
            aux_y = plan.ranks.all_reduce_latents(plan.backend.decode(v_aux.clamp_min_(0), i_aux, W_dec))
        ctx.plan = plan
        ctx.save_for_backward(x, W_enc, W_dec, b_dec, v, i, v_aux, i_aux)
        ctx.mark_non_differentiable(i)
        ctx.set_materialize_grads(False)
        return y, aux_y, v, i

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, W_enc, W_dec, b_dec, v, i, v_aux, i_aux = ctx.saved_tensors
        be, plan = ctx.plan.backend, ctx.plan
        gy = x.new_zeros(len(x), W_dec.shape[1]) if grads[0] is None else grads[0].contiguous()
        g = be.dots(gy, W_dec, i)
        if grads[2] is not None:
            g += grads[2]
        g.mul_(v > 0)
        rows = torch.arange(len(x), device=x.device)
        latents, values, slopes, source = i.flatten(), v.flatten(), g.flatten(), rows.repeat_interleave(i.shape[1])
        hits, upstream = None, gy
        if ctx.plan.candidates:  # rows of unequal length: what fills them up has value and slope zero
            on = values.nonzero().flatten()
            latents, values, slopes, source = latents[on], values[on], slopes[on], source[on]
        g_aux = None
        if i_aux is not None and grads[1] is not None:  # the entries of the dead latents join the list
            g_aux = be.dots(grads[1].contiguous(), W_dec, i_aux).mul_(v_aux > 0)
            latents, values, slopes = (
                torch.cat([a, b.flatten()]) for a, b in ((latents, i_aux), (values, v_aux), (slopes, g_aux))
            )
            hits = torch.cat(
                [source, (len(x) + torch.arange(len(i_aux), device=x.device)).repeat_interleave(i_aux.shape[1])]
            )
            source = torch.cat([source, plan.for_aux(rows).repeat_interleave(i_aux.shape[1])])
            upstream = torch.cat([gy, grads[1]])
        t = be.transpose(latents, len(W_dec))
        gW_dec = be.scatter(t, values, source if hits is None else hits, upstream)
        gW_enc = be.scatter(t, slopes, source, x)
        gb_enc = torch.bincount(latents, weights=slopes, minlength=len(W_dec)).to(x.dtype)
        gx = None
        if ctx.needs_input_grad[0]:
            gx = be.decode(g, i, W_enc)
            if g_aux is not None:
                gx.index_add_(0, plan.for_aux(rows), be.decode(g_aux, i_aux, W_enc))
            gx = plan.ranks.all_reduce_latents(gx)
        gb_dec = (
            gy.sum(0) if plan.ranks.latents_rank == 0 else torch.zeros_like(b_dec)
        )  # its parts are summed over all processes
        if plan.centred:
            gW_enc.addr_(gb_enc, b_dec, alpha=-1)
            gb_dec -= gb_enc @ W_enc  # reduce over the batch, then multiply: no second dense product
        return gx, gW_enc, gb_enc, gW_dec, gb_dec, None
