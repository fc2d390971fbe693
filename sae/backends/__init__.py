"""Who does the arithmetic of a sparse step: one small interface, several machines.

``pick("auto", tensor)`` chooses by device and by what this build of PyTorch offers, probed once.
"""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor

from sae.backends.base import Backend, Transposed
from sae.errors import MissingError

__all__ = ["Backend", "Transposed", "arranged", "pick"]


@cache
def _named(name: str) -> Backend:
    if name == "cpu":
        from sae.backends.cpu import CpuBackend

        return CpuBackend()
    if name == "triton":
        from sae.backends.triton import TritonBackend

        return TritonBackend()
    if name == "dense":
        from sae.backends.dense import DenseBackend

        return DenseBackend()
    from sae.backends.base import Backend

    return Backend()


@cache
def _auto(device_type: str) -> str:
    if device_type == "cpu":
        from sae.backends.cpu import works_here

        return "cpu" if works_here() else "fallback"
    if device_type == "cuda":
        try:
            import triton  # noqa: F401  # absent from many installs
        except ImportError:
            return "fallback"
        return "triton"
    return "fallback"


def pick(name: str, like: Tensor) -> Backend:
    """The backend called ``name`` ("auto", "cpu", "fallback", "triton", "dense") for tensors such as ``like``.

    Raises:
        MissingError: the backend needs something that is not installed here.
    """
    chosen = _auto(like.device.type) if name == "auto" else name
    try:
        return _named(chosen)
    except ImportError as e:
        raise MissingError(
            f"backend {name!r} needs the package {e.name!r}. Install the extra 'cuda', or use backend = 'auto'."
        ) from e


def arranged(backend: Backend, products: str, compiled: bool) -> Backend:
    """A backend whose dense product has its factors rounded to bfloat16 (``products = "bf16"``; the sums are of 32
    bits, the result is rounded and comes back in 32), is compiled, or both.

    What is compiled is PyTorch's own product: it knows how, where a backend's library call is closed to it.
    """
    linear = Backend().linear if compiled else backend.linear
    if products != "bf16" and not compiled:
        return backend
    if products == "bf16":
        exact = linear

        def linear(x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor) -> Tensor:
            rounded = exact(x_BD.bfloat16(), weight_FD.bfloat16(), torch.zeros_like(bias_F, dtype=torch.bfloat16))
            return rounded.to(x_BD.dtype).add_(bias_F)

    out = copy.copy(backend)
    out.linear = torch.compile(linear, dynamic=True) if compiled else linear  # type: ignore[method-assign]
    return out
