"""Matryoshka prefixes: the first latents must reconstruct alone, so that wide dictionaries keep general latents in
front.

The loss adds, for every prefix m, the error of the reconstruction from the kept latents below m
(Bussmann et al. 2025, arXiv 2503.17547, eq. 5). Selection is that of the Top-K or BatchTopK underneath, and everything
stays sparse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae.activation import BatchTopK, Reconstruction, TopK
from sae.penalised import own_bias

if TYPE_CHECKING:
    from sae.backends import Backend
    from sae.encode import StepPlan
    from sae.protocols import Weights


@dataclass(frozen=True)
class MatryoshkaTopK(TopK):
    """Top-K whose first ``prefixes[j]`` latents reconstruct alone, too."""

    prefixes: tuple[int, ...] = ()

    def reconstruct(self, model: Weights, x_BD: Tensor, plan: StepPlan, target_BD: Tensor) -> Reconstruction:
        out = super().reconstruct(model, x_BD, plan, target_BD)
        return *out[:4], prefix_errors(model, target_BD, out[2], out[3], plan, self.prefixes)

    def fold(self, factor_F: Tensor) -> TopK:
        """After training it is a plain Top-K."""
        return TopK(self.k)


@dataclass(frozen=True)
class MatryoshkaBatchTopK(BatchTopK):
    """BatchTopK whose first ``prefixes[j]`` latents reconstruct alone, too."""

    prefixes: tuple[int, ...] = ()

    def reconstruct(self, model: Weights, x_BD: Tensor, plan: StepPlan, target_BD: Tensor) -> Reconstruction:
        out = super().reconstruct(model, x_BD, plan, target_BD)
        return *out[:4], prefix_errors(model, target_BD, out[2], out[3], plan, self.prefixes)


def prefix_errors(
    model: Weights, target_BD: Tensor, values_BK: Tensor, indices_BK: Tensor, plan: StepPlan, prefixes: tuple[int, ...]
) -> Tensor:
    """Sum over prefixes of the mean squared error of their reconstructions."""
    ranks = plan.ranks
    here = tuple(ranks.local(slice(0, p), model.d_sae).stop for p in prefixes)
    ys = ranks.all_reduce_latents(
        PrefixDecode.apply(values_BK, indices_BK, model.dec_FD, own_bias(model, plan), here, plan.backend)
    )
    return ranks.all_reduce_data((ys - target_BD).square().sum()) / ((plan.rows or len(target_BD)) * target_BD.shape[1])


class PrefixDecode(torch.autograd.Function):
    """(values, indices [B, K], W_dec [F, D], b_dec [D]) -> reconstructions [M, B, D] from the latents below each of M
    ascending prefixes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        indices: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        prefixes: tuple[int, ...],
        backend: Backend,
    ) -> Tensor:
        part = torch.bucketize(
            indices, torch.tensor(prefixes, device=indices.device), right=True
        )  # [B, K]: number of prefixes it is not in
        pieces = [backend.decode(values * (part == m), indices, W_dec) for m in range(len(prefixes))]
        ctx.save_for_backward(values, indices, W_dec, part)
        ctx.backend = backend
        return torch.stack(pieces).cumsum(0) + b_dec

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, W_dec, part = ctx.saved_tensors
        be, (M, B, _) = ctx.backend, grads[0].shape
        upstream = grads[0].flip(0).cumsum(0).flip(0).contiguous()  # an entry of part m is in all prefixes from m on
        inside = part < M
        g_values = sum((be.dots(upstream[m], W_dec, indices) * (part == m) for m in range(M)), torch.zeros_like(values))
        rows = torch.arange(B, device=indices.device)[:, None].expand_as(indices)
        latents, source = indices[inside], (part * B + rows)[inside]
        g_dec = be.scatter(be.transpose(latents, len(W_dec)), values[inside], source, upstream.flatten(0, 1))
        return g_values, None, g_dec, upstream[0].sum(0), None, None
