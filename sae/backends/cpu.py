"""CPU backend: sparse CSR products from MKL, dense products from oneDNN where that is the faster library."""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sae.backends.base import Backend, Transposed


def _csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(crow, col, values, size=shape, check_invariants=False)


@cache
def works_here() -> bool:
    """Does this build of PyTorch multiply and sample sparse CSR matrices on the CPU? (Builds without MKL do not.)"""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*CSR tensor support is in beta.*")
            a = _csr(torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.ones(2), (2, 2))
            dense = torch.eye(2)
            return bool(torch.equal(a @ dense, a.to_dense()))
    except (RuntimeError, NotImplementedError):
        return False


class CpuBackend(Backend):
    """Weight gradients as CSR(F, B) products."""

    name = "cpu"

    def __init__(self) -> None:
        works_here()  # also spends PyTorch's one-time beta warning

    def scatter(self, t: Transposed, values_BK: Tensor, rows_BD: Tensor) -> Tensor:
        a = _csr(t.crow_F1, t.rows_N, values_BK.reshape(-1)[t.order_N], (len(t.crow_F1) - 1, t.n_rows))
        return a @ rows_BD

    def dots(self, grad_BD: Tensor, weight_FD: Tensor, indices_BK: Tensor) -> Tensor:
        n, k = indices_BK.shape
        weights = torch.ones((), dtype=grad_BD.dtype).expand(n, k).contiguous().requires_grad_()
        with torch.enable_grad():
            y = nnf.embedding_bag(indices_BK, weight_FD.detach(), mode="sum", per_sample_weights=weights)
        (g,) = torch.autograd.grad(y, weights, grad_BD)
        return g
