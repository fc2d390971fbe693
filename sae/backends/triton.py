"""GPU backend: three Triton kernels, one program per row or per latent, sums in one order, nothing of shape (B, K, D).

With ``TRITON_INTERPRET=1`` the same kernels run on the CPU, slowly; that is how they are tested where there is no GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.backends.base import Backend, Transposed


@triton.jit
def _decode(values, indices, weight, out, k, d, BLOCK: tl.constexpr, ACC: tl.constexpr):
    row, cols = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < d
    total = tl.zeros((BLOCK,), dtype=ACC)
    for j in range(k):
        latent = tl.load(indices + row * k + j)
        value = tl.load(values + row * k + j).to(ACC)
        total += value * tl.load(weight + latent * d + cols, mask=inside, other=0.0).to(ACC)
    tl.store(out + row * d + cols, total, mask=inside)


@triton.jit
def _dots(rows, weight, indices, out, k, d, BLOCK: tl.constexpr, ACC: tl.constexpr):
    row = tl.program_id(0)
    for j in range(k):
        latent = tl.load(indices + row * k + j)
        total = tl.zeros((BLOCK,), dtype=ACC)
        for start in range(0, d, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            inside = cols < d
            activation = tl.load(rows + row * d + cols, mask=inside, other=0.0).to(ACC)
            total += activation * tl.load(weight + latent * d + cols, mask=inside, other=0.0).to(ACC)
        tl.store(out + row * k + j, tl.sum(total, axis=0))


@triton.jit
def _scatter(order, crow, values, source, rows, out, d, BLOCK: tl.constexpr, ACC: tl.constexpr):
    latent, cols = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < d
    total = tl.zeros((BLOCK,), dtype=ACC)
    for place in range(tl.load(crow + latent), tl.load(crow + latent + 1)):
        n = tl.load(order + place)
        row = tl.load(source + n)
        value = tl.load(values + n).to(ACC)
        total += value * tl.load(rows + row * d + cols, mask=inside, other=0.0).to(ACC)
    tl.store(out + latent.to(tl.int64) * d + cols, total, mask=inside)


def _sizes(d: int, dtype: torch.dtype) -> dict[str, object]:
    """Columns of one program, and the type of its sums: 16-bit numbers are added up in 32 bits."""
    return {
        "BLOCK": min(1024, triton.next_power_of_2(d)),
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }


class TritonBackend(Backend):
    """Sparse sums by Triton; products and selection by PyTorch."""

    name = "triton"

    def decode(self, values_BK: Tensor, indices_BK: Tensor, weight_FD: Tensor) -> Tensor:
        (n, k), d = indices_BK.shape, weight_FD.shape[1]
        out, sizes = values_BK.new_empty(n, d), _sizes(d, values_BK.dtype)
        if n:
            _decode[(n, triton.cdiv(d, sizes["BLOCK"]))](
                values_BK.contiguous(), indices_BK.contiguous(), weight_FD, out, k, d, **sizes
            )
        return out

    def dots(self, rows_BD: Tensor, weight_FD: Tensor, indices_BK: Tensor) -> Tensor:
        (n, k), d = indices_BK.shape, weight_FD.shape[1]
        out = rows_BD.new_empty(n, k)
        if n:
            sizes = _sizes(d, rows_BD.dtype)
            _dots[(n,)](rows_BD.contiguous(), weight_FD, indices_BK.contiguous(), out, k, d, **sizes)
        return out

    def scatter(self, t: Transposed, values_N: Tensor, source_N: Tensor, rows_BD: Tensor) -> Tensor:
        f, d = len(t.crow_F1) - 1, rows_BD.shape[1]
        out, sizes = rows_BD.new_empty(f, d), _sizes(d, rows_BD.dtype)
        _scatter[(f, triton.cdiv(d, sizes["BLOCK"]))](
            t.order_N, t.crow_F1, values_N.contiguous(), source_N, rows_BD.contiguous(), out, d, **sizes
        )
        return out


def available() -> bool:
    """Can the kernels run here: on a GPU, or interpreted?"""
    return torch.cuda.is_available() or triton.knobs.runtime.interpret
