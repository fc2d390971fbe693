"""What a device can do, found out by doing it once; and the second way where it cannot.

Apple's GPUs have no 64-bit numbers, PyTorch's sparse products and embedding bags exist for some devices only, pinned
memory and TF32 for NVIDIA's. Nothing here is a list of devices: :func:`abilities` tries each on two numbers. What this
package needs and a device lacks is done another way (:func:`wide`, :meth:`sae.backends.Backend.scatter`); what a
config asks for and a device lacks is refused by :func:`check`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from sae.errors import ConfigError, MissingError, UsageError

CANNOT = (RuntimeError, TypeError, NotImplementedError, AssertionError)  # how PyTorch says that a device cannot
KINDS = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Abilities:
    """What one kind of device can do. A field is its own name in messages."""

    float64: bool  # numbers of 64 bits
    bfloat16: bool  # products of 16-bit factors
    sparse: bool  # a sparse times a dense matrix
    bags: bool  # embedding bags with weights
    kth: bool  # the k-th smallest number without sorting
    fused_adam: bool  # Adam as one kernel
    pinned: bool  # copies from pinned memory, on a stream of their own
    tf32: bool  # float32 products may be rounded to TF32


class Asked(Protocol):
    """What a :class:`sae.config.TrainingConfig` asks of a device."""

    @property
    def dtype(self) -> str: ...
    @property
    def products(self) -> str: ...
    @property
    def bf16_preselect(self) -> bool: ...
    @property
    def compiled(self) -> bool: ...


def check_device(device: str, what: str = "device") -> None:
    """Refuse a device that PyTorch does not see here.

    Raises:
        UsageError: not the name of one. MissingError: this build of PyTorch, or this machine, has none.
    """
    kind = device.split(":")[0]
    if kind not in KINDS or (":" in device and not device.split(":", 1)[1].isdigit()):
        raise UsageError(f"{what} {device}: cpu, cuda, cuda:N or mps.")
    have = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if not have or int(device.partition(":")[2] or 0) >= have:
        raise MissingError(
            f"{what} {device}: this PyTorch ({torch.__version__}) sees no such device here (it sees {have} of that"
            " kind). Use cpu, or install a build for your device."
        )


def abilities(device: str | torch.device) -> Abilities:
    """What a device can do, tried once per kind and process."""
    return _tried(torch.device(device).type)


@cache
def _tried(kind: str) -> Abilities:
    def can(work: Callable[[], object]) -> bool:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # that something is slow, or in beta, is no answer to whether it is there
                work()
        except CANNOT:
            return False
        return True

    return Abilities(
        float64=can(lambda: torch.ones(2, device=kind).double().sum()),
        bfloat16=can(lambda: torch.ones(2, 2, device=kind).bfloat16() @ torch.ones(2, 2, device=kind).bfloat16()),
        sparse=can(lambda: _sparse_product(kind)),
        bags=can(lambda: _bag(kind)),
        kth=can(lambda: torch.ones(2, device=kind).kthvalue(1)),
        fused_adam=can(lambda: _adam_step(kind)),
        pinned=kind == "cuda" and can(lambda: torch.ones(2).pin_memory().to(kind, non_blocking=True)),
        tf32=kind == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0),
    )


def _sparse_product(kind: str) -> Tensor:
    at = torch.zeros(2, 1, dtype=torch.int64, device=kind)
    codes = torch.sparse_coo_tensor(at, torch.ones(1, device=kind), (2, 2), check_invariants=False)
    return torch.sparse.mm(codes, torch.ones(2, 2, device=kind))


def _bag(kind: str) -> Tensor:
    at = torch.zeros(1, 1, dtype=torch.int64, device=kind)
    rows, weights = torch.ones(2, 2, device=kind), torch.ones(1, 1, device=kind)
    return torch.nn.functional.embedding_bag(at, rows, mode="sum", per_sample_weights=weights)


def _adam_step(kind: str) -> None:
    p = torch.nn.Parameter(torch.ones(2, device=kind))
    p.grad = torch.ones(2, device=kind)
    torch.optim.Adam([p], fused=True).step()


def wide(t: Tensor) -> Tensor:
    """A tensor in 64 bits, on its device, or on the CPU where that has none: for sums that must not lose digits."""
    return t.double() if abilities(t.device).float64 else t.cpu().double()


def wide_home(device: str | torch.device) -> torch.device:
    """Where :func:`wide` puts the tensors of a device."""
    return torch.device(device) if abilities(device).float64 else torch.device("cpu")


@contextmanager
def float32_products(products: str, kind: str) -> Iterator[None]:
    """Within it, NVIDIA GPUs round the factors of float32 products to TF32 if ``products`` says so, and else do not,
    whatever was set before; and products of bfloat16 are summed in float32.
    """
    if kind != "cuda":
        yield
        return
    before, reduced = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul
    allowed = reduced.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("high" if products == "tf32" else "highest")
    reduced.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        reduced.allow_bf16_reduced_precision_reduction = allowed


def check(config: Asked, device: str | torch.device) -> None:
    """Refuse a config that a device cannot hold, before anything is built.

    Raises:
        ConfigError: dtype, products or compiled ask for what the device, or this machine, has not.
    """
    kind, can = torch.device(device).type, abilities(device)
    if config.dtype == "float64" and not can.float64:
        raise ConfigError(f"dtype = 'float64': {kind} has no 64-bit numbers. Use dtype = 'float32', or device = 'cpu'.")
    if config.products == "tf32" and not can.tf32:
        raise ConfigError(
            f"products = 'tf32': {kind} has no TF32 here (NVIDIA GPUs from Ampere on have). Use 'float32' or 'bf16'."
        )
    if (config.products == "bf16" or config.bf16_preselect) and not can.bfloat16:
        asked = "bf16_preselect = true" if config.bf16_preselect else "products = 'bf16'"
        raise ConfigError(f"{asked}: {kind} multiplies no bfloat16 here. Use products = 'float32'.")
    if config.compiled and (why := why_not_compiled(kind)):
        raise ConfigError(f"compiled = true: PyTorch cannot compile for {kind} here ({why}). Leave it out.")


def arithmetic(config: Asked, device: str | torch.device) -> str:
    """What is to be said of a config's arithmetic on a device: nothing where it is float32 on a CPU."""
    said = []
    if config.products == "bf16":
        said.append("the encoder's product in bfloat16, sums in float32")
    if torch.device(device).type == "cuda":
        said.append("TF32 on" if config.products == "tf32" else "TF32 off (products = 'tf32' turns it on)")
    if config.compiled:
        said.append("compiled")
    return f" ({'; '.join(said)})" if said else ""


@cache
def why_not_compiled(kind: str) -> str:
    """The first line of why ``torch.compile`` does not work here (no compiler, a Python too new), or nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x, bias = torch.ones(2, 2, device=kind), torch.ones(2, device=kind)
            torch.compile(lambda x, weight, bias: torch.addmm(bias, x, weight.t()) + 1, dynamic=True)(x, x, bias)
    except Exception as e:  # noqa: BLE001  (compilers fail in many ways, and every one of them means the same here)
        return next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)[:200]
    return ""
