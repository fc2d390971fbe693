"""The oracle: every operation written the plain dense way, in about thirty lines. Slow, obviously right."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.backends.base import Backend, Transposed


def spread(values_BK: Tensor, indices_BK: Tensor, n_latents: int) -> Tensor:
    """[B, F] with the kept values in their places and zeros elsewhere."""
    return values_BK.new_zeros(len(values_BK), n_latents).scatter_(1, indices_BK, values_BK)


class DenseBackend(Backend):
    """Dense everything."""

    name = "dense"

    def top_k(self, pre_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
        columns = torch.topk(pre_BF, k, dim=1).indices.sort(dim=1).values
        return pre_BF.gather(1, columns), columns

    def decode(self, values_BK: Tensor, indices_BK: Tensor, weight_FD: Tensor) -> Tensor:
        return spread(values_BK, indices_BK, len(weight_FD)) @ weight_FD

    def dots(self, rows_BD: Tensor, weight_FD: Tensor, indices_BK: Tensor) -> Tensor:
        return (rows_BD @ weight_FD.t()).gather(1, indices_BK)

    def scatter(self, t: Transposed, values_N: Tensor, source_N: Tensor, rows_BD: Tensor) -> Tensor:
        latent_N = torch.empty_like(t.order_N)
        latent_N[t.order_N] = torch.repeat_interleave(torch.arange(len(t.crow_F1) - 1), t.crow_F1.diff())
        codes_FB = values_N.new_zeros(len(t.crow_F1) - 1, len(rows_BD)).index_put_(
            (latent_N, source_N), values_N, accumulate=True
        )
        return codes_FB @ rows_BD
