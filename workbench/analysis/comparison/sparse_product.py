"""Blocks of the correlation matrix: (rows of a)^T times b, minus the product of the means, as a dense float64 block.

Two ways, tested equal: PyTorch's sparse-times-sparse product with a dense result (MKL on x86), and scipy's sparse
product, which works everywhere and is about three times slower.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from sae.errors import UsageError

if TYPE_CHECKING:
    from workbench.analysis.comparison.codes import Side

SUB = 128  # rows of one product: its dense block stays near the caches


@contextmanager
def one_thread() -> Iterator[None]:
    """Parallelism here is over blocks: two threads inside MKL's product are slower than one."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Product:
    """``product(lo, hi)`` is r between latents ``a.ids[lo:hi]`` and all of ``b.ids``: float64 [hi - lo, n_b].

    The array is a buffer of the calling thread and is overwritten by its next call.
    """

    def __init__(self, a: Side, b: Side, backend: str):
        if backend not in ("auto", "mkl", "scipy"):
            raise UsageError(f"backend {backend!r} is not one of 'auto', 'mkl', 'scipy'.")
        if backend == "mkl" and not mkl_works():
            raise UsageError(
                "backend 'mkl': this build of PyTorch has no sparse product with a dense result. Use backend='scipy'."
            )
        self.a, self.b = a, b
        self.mkl = backend != "scipy" and mkl_works()
        self.n_blocks = len(a.block_sizes)
        self._local = threading.local()
        self._b0 = _csr(b.scaled(0)) if self.mkl and self.n_blocks == 1 and len(b.ids) else None
        if self.n_blocks == 1:
            a.by_latent(0)  # made once, before threads ask for it

    def start_worker(self) -> None:
        """Called once in every thread."""
        torch.set_num_threads(1)

    def __call__(self, lo: int, hi: int) -> NDArray[np.float64]:
        out = self._buffer(hi - lo)
        for i in range(self.n_blocks):
            rows = self.a.by_latent(i)[lo:hi] if self.n_blocks == 1 else self._rows(i, lo, hi)
            self._add(rows, i, out, first=i == 0)
        out.addmm_(torch.from_numpy(self.a.u[lo:hi, None]), torch.from_numpy(self.b.u[None, :]), alpha=-1.0)
        return out.numpy()

    def _rows(self, i: int, lo: int, hi: int) -> sp.csr_array:
        """Latents lo:hi of token block i, without transposing the others."""
        return self.a.scaled(i)[:, lo:hi].T.tocsr()

    def _add(self, rows: sp.csr_array, i: int, out: torch.Tensor, *, first: bool) -> None:
        """out (+)= rows [n, tokens] @ b's block i [tokens, n_b]."""
        if self.mkl:
            right = self._b0 if self._b0 is not None else _csr(self.b.scaled(i))
            for lo in range(0, len(out), SUB):
                part = out[lo : lo + SUB]
                torch.addmm(part, _csr(rows[lo : lo + SUB]), right, beta=0.0 if first else 1.0, out=part)
            return
        right_sp = self.b.scaled(i)
        for lo in range(0, len(out), SUB):
            part = (rows[lo : lo + SUB] @ right_sp).toarray()
            out[lo : lo + SUB] = torch.from_numpy(part) if first else out[lo : lo + SUB] + torch.from_numpy(part)

    def _buffer(self, n: int) -> torch.Tensor:
        have = getattr(self._local, "buffer", None)
        if have is None or len(have) < n:
            have = self._local.buffer = torch.empty(n, len(self.b.ids), dtype=torch.float64)
        return have[:n]


def _csr(x: sp.csr_array) -> torch.Tensor:
    return torch.sparse_csr_tensor(
        torch.from_numpy(x.indptr),
        torch.from_numpy(x.indices),
        torch.from_numpy(x.data),
        size=x.shape,
        check_invariants=False,
    )


@cache
def mkl_works() -> bool:
    """Whether this build of PyTorch multiplies two CSR matrices into a dense one (checked on a small product)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "sparse CSR support is in beta", once per process
        x = sp.random_array((5, 7), density=0.5, format="csr", dtype=np.float64, rng=np.random.default_rng(0))
        x.indices, x.indptr = x.indices.astype(np.int32), x.indptr.astype(np.int32)
        y = x.T.tocsr()
        try:
            out = torch.addmm(torch.zeros(5, 5, dtype=torch.float64), _csr(x), _csr(y), beta=0.0)
        except (RuntimeError, NotImplementedError):
            return False
        return bool(np.allclose(out.numpy(), (x @ y).toarray()))
