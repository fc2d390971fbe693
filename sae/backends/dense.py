"""The oracle: every operation written the plain dense way, about thirty lines. Slow, obviously right."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.backends.base import Backend, Transposed


def scatter_dense(values_BK: Tensor, indices_BK: Tensor, n_latents: int) -> Tensor:
    """[B, F] with the kept values in their places and zeros elsewhere."""
    return values_BK.new_zeros(len(values_BK), n_latents).scatter_(1, indices_BK, values_BK)


class DenseBackend(Backend):
    """Dense everything."""

    name = "dense"

    def top_k(self, pre_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, indices = torch.topk(pre_BF, k, dim=1)
        return values, indices

    def decode(self, values_BK: Tensor, indices_BK: Tensor, weight_FD: Tensor) -> Tensor:
        return scatter_dense(values_BK, indices_BK, len(weight_FD)) @ weight_FD

    def dots(self, grad_BD: Tensor, weight_FD: Tensor, indices_BK: Tensor) -> Tensor:
        return (grad_BD @ weight_FD.t()).gather(1, indices_BK)

    def scatter(self, t: Transposed, values_BK: Tensor, rows_BD: Tensor) -> Tensor:
        indices = torch.empty_like(t.order_N)
        latent = torch.repeat_interleave(torch.arange(len(t.counts_F), device=indices.device), t.counts_F)
        indices[t.order_N] = latent
        return scatter_dense(values_BK, indices.view(values_BK.shape), len(t.counts_F)).t() @ rows_BD
