"""The four operations of a sparse step in plain PyTorch: the interface, and the fallback that runs anywhere.

Subclasses replace what their machine does faster. All of them are held to the dense reference by one test suite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sae.backends.select import top_k


@dataclass
class Transposed:
    """The B*K kept entries regrouped by latent: entry ``order[p]`` of the flat list is the p-th, latent f owns ``crow[f]:crow[f+1]``."""

    order_N: Tensor
    rows_N: Tensor
    crow_F1: Tensor
    n_rows: int

    @property
    def counts_F(self) -> Tensor:
        """How often each latent was kept."""
        return self.crow_F1.diff()


class Backend:
    """Sparse arithmetic on ``values_BK, indices_BK``: K kept latents for each of B rows. A value of zero means "not active"."""

    name = "fallback"

    def linear(self, x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor) -> Tensor:
        """The one dense product: ``x @ weight.T + bias``, [B, F]."""
        return torch.addmm(bias_F, x_BD, weight_FD.t())

    def top_k(self, pre_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest entries per row (values, indices), in no promised order; exact."""
        return top_k(pre_BF, k)

    def decode(self, values_BK: Tensor, indices_BK: Tensor, weight_FD: Tensor) -> Tensor:
        """``sum_k values[b, k] * weight[indices[b, k]]``, [B, D]."""
        return nnf.embedding_bag(indices_BK, weight_FD, mode="sum", per_sample_weights=values_BK)

    def dots(self, grad_BD: Tensor, weight_FD: Tensor, indices_BK: Tensor) -> Tensor:
        """``<grad[b], weight[indices[b, k]]>``, [B, K]: the gradient of the kept values."""
        out = grad_BD.new_empty(indices_BK.shape)
        step = max(1, 2**22 // max(1, indices_BK.shape[1] * grad_BD.shape[1]))
        for i in range(0, len(grad_BD), step):
            torch.bmm(weight_FD[indices_BK[i : i + step]], grad_BD[i : i + step, :, None], out=out[i : i + step, :, None])
        return out

    def transpose(self, indices_BK: Tensor, n_latents: int) -> Transposed:
        """Group the kept entries by latent; stable, so sums have one order."""
        flat = indices_BK.reshape(-1)
        order = torch.argsort(flat, stable=True)
        crow = torch.zeros(n_latents + 1, dtype=torch.int64, device=flat.device)
        torch.cumsum(torch.bincount(flat, minlength=n_latents), 0, out=crow[1:])
        return Transposed(order, torch.div(order, indices_BK.shape[1], rounding_mode="floor"), crow, len(indices_BK))

    def scatter(self, t: Transposed, values_BK: Tensor, rows_BD: Tensor) -> Tensor:
        """``out[f] = sum over entries of latent f of value * rows[b]``, [F, D]: a weight gradient."""
        return nnf.embedding_bag(
            t.rows_N, rows_BD, t.crow_F1, mode="sum", per_sample_weights=values_BK.reshape(-1)[t.order_N], include_last_offset=True
        )
