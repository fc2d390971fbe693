"""CPU backend: the dense product from oneDNN, sampled products from MKL's sparse CSR, sums from embedding bags.

On processors where PyTorch's default library does not use the widest vectors, oneDNN's product takes less than half
the time of ``torch.mm``. Both choices follow from the build of PyTorch alone, never from a timing, so a resumed run
takes the same one.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from sae.backends.base import Backend


def _csr(indices_BK: Tensor, n: int, values: Tensor) -> Tensor:
    rows, k = indices_BK.shape
    crow = torch.arange(0, rows * k + 1, k)
    return torch.sparse_csr_tensor(crow, indices_BK.reshape(-1), values, size=(rows, n), check_invariants=False)


@cache
def works_here() -> bool:
    """Does this build of PyTorch sample products at the places of a sparse CSR matrix? (Builds without MKL do not.)"""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*CSR tensor support is in beta.*")
            at = _csr(torch.tensor([[1], [0]]), 2, torch.zeros(2))
            got = torch.sparse.sampled_addmm(at, torch.eye(2), torch.arange(4.0).view(2, 2), beta=0.0)
        return got.values().tolist() == [1.0, 2.0]
    except (RuntimeError, NotImplementedError):
        return False


@cache
def onednn_linear(dtype: torch.dtype = torch.float32) -> bool:
    """Is oneDNN's fused linear layer part of this build, in this precision on this processor? (Half precisions need
    instructions that many processors lack.)
    """
    try:
        x, weight, bias = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype), torch.zeros(4, dtype=dtype)
        return bool((torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "") == 3).all())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False


class CpuBackend(Backend):
    """The fast CPU path; ``fallback`` where :func:`works_here` says no."""

    name = "cpu"

    def __init__(self) -> None:
        works_here()  # also spends PyTorch's one-time beta warning

    def linear(self, x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor) -> Tensor:
        if x_BD.dtype != torch.float64 and onednn_linear(x_BD.dtype):
            return torch.ops.mkldnn._linear_pointwise(x_BD, weight_FD, bias_F, "none", [], "")
        return super().linear(x_BD, weight_FD, bias_F)

    def dots(self, rows_BD: Tensor, weight_FD: Tensor, indices_BK: Tensor) -> Tensor:
        if not bool((indices_BK.diff(dim=1) > 0).all()):  # MKL wants ascending columns; encode() gives them
            indices_BK, order = indices_BK.sort(dim=1)
            values = self.dots(rows_BD, weight_FD, indices_BK)
            return torch.empty_like(values).scatter_(1, order, values)
        at = _csr(indices_BK, len(weight_FD), rows_BD.new_zeros(indices_BK.numel()))
        return torch.sparse.sampled_addmm(at, rows_BD, weight_FD.t(), beta=0.0).values().view(indices_BK.shape)
