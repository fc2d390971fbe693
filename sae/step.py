"""One Top-K reconstruction and its exact gradients: one dense product forward, sparse arithmetic for everything else.

Forward, with kept set S_b of row b:  f = relu((x - b_dec) W_enc + b_enc)[S_b],  y = f W_dec + b_dec.
Nothing of shape (B, F) outlives the forward pass, and no gradient of that shape is ever formed: the gradient of a
Top-K SAE touches kept entries only. Weights are (F, D), row-major, so each latent is one contiguous row.

AuxK (Gao et al. 2024, appendix A.2): the k_aux largest *dead* latents of a row reconstruct the residual the live ones
leave. Their pre-activations are columns of the same product, so no second one is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae.backends import Backend


@dataclass(frozen=True)
class StepPlan:
    """What a step keeps, and who computes it."""

    k: int
    backend: Backend
    selection_F: Tensor | None = None  # factors under which latents compete
    dead_N: Tensor | None = None  # indices of dead latents, None: no AuxK
    k_aux: int = 0
    aux_every: int = 1
    tile_rows: int = 0
    bf16_preselect: bool = False


def tile_size(n_latents: int, itemsize: int = 4, cache_bytes: int = 4 * 2**20) -> int:
    """Rows whose pre-activations fill ``cache_bytes``, between 64 and 1024."""
    return int(min(1024, max(64, cache_bytes // (n_latents * itemsize))))


def encode(x_BD: Tensor, W_enc_FD: Tensor, bias_F: Tensor, plan: StepPlan) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Kept pre-activations, tile by tile: (values, indices) [B, K], then the same for the dead latents or None."""
    n, rows = len(x_BD), plan.tile_rows or tile_size(len(W_enc_FD), x_BD.element_size())
    weight, bias = (W_enc_FD, bias_F) if plan.selection_F is None else (W_enc_FD * plan.selection_F[:, None], bias_F * plan.selection_F)
    kept, aux = [], []
    rows += -rows % plan.aux_every
    for i in range(0, n, rows):
        pre = plan.backend.linear(x_BD[i : i + rows], weight, bias)
        kept.append(plan.backend.top_k(pre, plan.k))
        if plan.dead_N is not None:
            aux.append(plan.backend.top_k(pre[:: plan.aux_every].index_select(1, plan.dead_N), min(plan.k_aux, len(plan.dead_N))))
    values, indices = torch.cat([v for v, _ in kept]), torch.cat([i for _, i in kept])
    if plan.selection_F is not None:
        values = values / plan.selection_F[indices]
    if plan.dead_N is None:
        return values, indices, None, None
    aux_values, aux_indices = torch.cat([v for v, _ in aux]), plan.dead_N[torch.cat([i for _, i in aux])]
    if plan.selection_F is not None:
        aux_values = aux_values / plan.selection_F[aux_indices]
    return values, indices, aux_values, aux_indices


class SparseStep(torch.autograd.Function):
    """(x, W_enc, b_enc, W_dec, b_dec, plan) -> (y [B, D], aux_y [ceil(B/aux_every), D], values, indices [B, K]).

    ``aux_y`` is empty without dead latents and carries no bias: it reconstructs the residual, which already has it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, plan: StepPlan) -> tuple[Tensor, ...]:
        bias = torch.addmv(b_enc, W_enc, b_dec, alpha=-1)
        v, i, v_aux, i_aux = encode(x, W_enc, bias, plan)
        v = v.clamp_min_(0)
        y = plan.backend.decode(v, i, W_dec).add_(b_dec)
        aux_y = x.new_zeros(0)
        if v_aux is not None and i_aux is not None:
            aux_y = plan.backend.decode(v_aux.clamp_min_(0), i_aux, W_dec)
        ctx.plan = plan
        ctx.save_for_backward(x, W_enc, W_dec, b_dec, v, i, v_aux, i_aux)
        ctx.mark_non_differentiable(i)
        return y, aux_y, v, i

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        gy, g_aux_y, gv = grads[:3]
        x, W_enc, W_dec, b_dec, v, i, v_aux, i_aux = ctx.saved_tensors
        be, n_latents = ctx.plan.backend, len(W_dec)
        t = be.transpose(i, n_latents)
        g = be.dots(gy, W_dec, i).add_(gv).mul_(v > 0)
        gW_dec, gW_enc = be.scatter(t, v, gy), be.scatter(t, g, x)
        gb_enc = x.new_zeros(n_latents).index_add_(0, i.reshape(-1), g.reshape(-1))
        if i_aux is not None:
            rows = slice(None, None, ctx.plan.aux_every)
            t_aux = be.transpose(i_aux, n_latents)
            g_aux = be.dots(g_aux_y, W_dec, i_aux).mul_(v_aux > 0)
            gW_dec += be.scatter(t_aux, v_aux, g_aux_y)
            gW_enc += be.scatter(t_aux, g_aux, x[rows].contiguous())
            gb_enc.index_add_(0, i_aux.reshape(-1), g_aux.reshape(-1))
        gx = None
        if ctx.needs_input_grad[0]:
            gx = be.decode(g, i, W_enc)
            if i_aux is not None:
                gx[:: ctx.plan.aux_every] += be.decode(g_aux, i_aux, W_enc)
        gW_enc.addr_(gb_enc, b_dec, alpha=-1)
        gb_dec = gy.sum(0) - gb_enc @ W_enc  # reduce over the batch, then multiply: no dense product
        return gx, gW_enc, gb_enc, gW_dec, gb_dec, None
