"""The selective scan by the CUDA kernels of `mamba-ssm`, when that package is installed and the tensors are on such a
device.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from torch import Tensor


@cache
def _kernel() -> Any:
    """`selective_scan_fn`, or None where mamba-ssm is missing or does not load on this machine."""
    try:
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except (ImportError, OSError):
        return None


def cuda_scan_available(x: Tensor) -> bool:
    """Whether `cuda_scan` can take `x`."""
    return x.is_cuda and _kernel() is not None


def cuda_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Same arguments and results as `scan.selective_scan`, without an initial state, which the kernel does not take.

    The kernel wants time last: x and dt [B,D,L], B and C [B,N,L]. Only y is differentiable.
    """
    y, last = _kernel()(
        x.transpose(1, 2).contiguous(),
        dt.transpose(1, 2).contiguous(),
        A.contiguous(),
        B.transpose(1, 2).contiguous(),
        C.transpose(1, 2).contiguous(),
        return_last_state=True,
    )
    return y.transpose(1, 2), last
