"""Nearest decoder directions by cosine, in blocks."""

from __future__ import annotations

import numpy as np
import torch


def unit_rows(W: torch.Tensor) -> torch.Tensor:
    """Rows scaled to norm 1; a zero row stays zero."""
    W = W.detach().float()
    return W / W.norm(dim=1, keepdim=True).clamp_min(1e-12)


def nearest(
    W: torch.Tensor, to: torch.Tensor | None = None, n: int = 20, *, block: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """The ``n`` rows of ``to`` with the largest (signed) cosine to each row of ``W``; without ``to``, rows of W, self
    excluded.

    Returns:
        ids int32 [F, n] and cosines float32 [F, n], best first. Where fewer rows exist: id -1 and NaN.
    """
    a = unit_rows(W)
    b = a if to is None else unit_rows(to)
    take = min(n, len(b) - (to is None))
    ids = np.full((len(a), n), -1, np.int32)
    cosines = np.full((len(a), n), np.nan, np.float32)
    if take < 1:
        return ids, cosines
    with torch.inference_mode():
        for start in range(0, len(a), block):
            part = a[start : start + block] @ b.T
            if to is None:
                own = torch.arange(start, start + len(part))
                part[own - start, own] = -2.0
            top = part.topk(take, dim=1)
            ids[start : start + block, :take] = top.indices.numpy()
            cosines[start : start + block, :take] = top.values.clamp(-1, 1).numpy()
    return ids, cosines
