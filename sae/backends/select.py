"""Exact top-k of wide rows in two stages.

A row is seen as ``g`` strided groups; only the k groups with the largest maxima can hold the k largest entries
(each of those k maxima is an entry at least as large as anything in any other group). So the expensive selection
runs over ``F / g`` maxima and then over ``k * g`` candidates instead of F entries. Strided groups make the maxima a
vectorised reduction.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_count(n: int, k: int) -> int:
    """Groups per column set that make ``n/g + k*g`` smallest among the powers of two dividing ``n``; 1 = select directly."""
    best, cost = 1, float(n)
    g = 2
    while n % g == 0 and n // g > k:
        c = n / g + k * g
        if c < cost:
            best, cost = g, c
        g *= 2
    return best


def top_k(pre_BF: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row and their columns (int64), in no promised order.

    Ties are broken arbitrarily. ``k == F`` keeps everything.
    """
    n_rows, n = pre_BF.shape
    g = group_count(n, k)
    if g == 1:
        values, indices = torch.topk(pre_BF, k, dim=1, sorted=False)
        return values, indices
    width = n // g
    grouped = pre_BF.view(n_rows, g, width)
    best = torch.topk(grouped.amax(1), k, dim=1, sorted=False).indices
    columns = (best[:, None, :] + torch.arange(0, n, width, device=pre_BF.device)[:, None]).view(n_rows, k * g)
    values, place = torch.topk(pre_BF.gather(1, columns), k, dim=1, sorted=False)
    return values, columns.gather(1, place)
