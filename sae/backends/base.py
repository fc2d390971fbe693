"""The operations of a sparse step in plain PyTorch: the interface, and the fallback that runs anywhere.

Subclasses replace what their machine does faster. All of them are held to the dense reference by one test suite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sae.backends.select import top_k
from sae.devices import abilities

ENTRIES = 2**14  # kept entries whose rows are gathered at a time where a device has no embedding bags


def bag(values_BK: Tensor, indices_BK: Tensor, weight_FD: Tensor) -> Tensor:
    """``sum_k values[b, k] * weight[indices[b, k]]``, [B, D], with gradients."""
    if abilities(weight_FD.device).bags:
        return nnf.embedding_bag(indices_BK, weight_FD, mode="sum", per_sample_weights=values_BK)
    step = max(1, ENTRIES // max(1, indices_BK.shape[1]))
    blocks = zip(values_BK.split(step), indices_BK.split(step), strict=True)
    return torch.cat([torch.bmm(v[:, None], weight_FD[i]).squeeze(1) for v, i in blocks])


def code_sums(values_BK: Tensor, indices_BK: Tensor, rows_BD: Tensor, n_latents: int) -> Tensor:
    """``sum_b f_b[i] rows[b]``, [F, D]: the codes f [B, F], given by their kept entries, times rows."""
    source = torch.arange(len(rows_BD), device=rows_BD.device).repeat_interleave(indices_BK.shape[1])
    values, latents = values_BK.flatten(), indices_BK.flatten()
    if abilities(rows_BD.device).sparse:
        at, size = torch.stack([latents, source]), (n_latents, len(rows_BD))
        return torch.sparse.mm(torch.sparse_coo_tensor(at, values, size, check_invariants=False), rows_BD)
    plain = Backend()
    return plain.scatter(plain.transpose(latents, n_latents), values, source, rows_BD)


@dataclass(frozen=True)
class Transposed:
    """A flat list of kept entries regrouped by latent: the p-th is entry ``order[p]``, latent f owns places
    ``crow[f]:crow[f+1]``.
    """

    order_N: Tensor
    crow_F1: Tensor


class Backend:
    """Sparse arithmetic on ``values_BK, indices_BK``: K kept latents for each of B rows.

    A value of zero means "not active".
    """

    name = "fallback"

    def linear(self, x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor) -> Tensor:
        """The one dense product: ``x @ weight.T + bias``, [B, F]."""
        return torch.addmm(bias_F, x_BD, weight_FD.t())

    def top_k(self, pre_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest entries per row, exact: (values, columns). Columns ascend within a row."""
        return top_k(pre_BF, k)

    def decode(self, values_BK: Tensor, indices_BK: Tensor, weight_FD: Tensor) -> Tensor:
        """``sum_k values[b, k] * weight[indices[b, k]]``, [B, D]."""
        return bag(values_BK, indices_BK, weight_FD)

    def dots(self, rows_BD: Tensor, weight_FD: Tensor, indices_BK: Tensor) -> Tensor:
        """``<rows[b], weight[indices[b, k]]>``, [B, K]. Gathers a cache-sized block at a time."""
        out = rows_BD.new_empty(indices_BK.shape)
        step = max(1, 2**18 // max(1, indices_BK.shape[1] * rows_BD.shape[1])) if rows_BD.device.type == "cpu" else 1024
        for i in range(0, len(rows_BD), step):
            out[i : i + step] = torch.bmm(weight_FD[indices_BK[i : i + step]], rows_BD[i : i + step, :, None]).squeeze(
                2
            )
        return out

    def transpose(self, indices_N: Tensor, n_latents: int) -> Transposed:
        """Group a flat list of latents by latent; stable, so that sums have one order."""
        order = torch.sort(indices_N.int(), stable=True).indices
        crow = torch.zeros(n_latents + 1, dtype=torch.int64, device=indices_N.device)
        torch.cumsum(torch.bincount(indices_N, minlength=n_latents), 0, out=crow[1:])
        return Transposed(order, crow)

    def scatter(self, t: Transposed, values_N: Tensor, source_N: Tensor, rows_BD: Tensor) -> Tensor:
        """``out[f] = sum over entries n of latent f of values[n] * rows[source[n]]``, [F, D]: a weight gradient."""
        if not abilities(rows_BD.device).bags:
            out = rows_BD.new_zeros(len(t.crow_F1) - 1, rows_BD.shape[1])
            latents = torch.arange(len(out), device=out.device).repeat_interleave(t.crow_F1.diff())
            for owners, entries in zip(latents.split(ENTRIES), t.order_N.split(ENTRIES), strict=True):
                out.index_add_(0, owners, values_N[entries][:, None] * rows_BD[source_N[entries]])
            return out
        return nnf.embedding_bag(
            source_N[t.order_N],
            rows_BD,
            t.crow_F1,
            mode="sum",
            per_sample_weights=values_N[t.order_N],
            include_last_offset=True,
        )
