"""What every kind of recurrent layer says of itself; one file per kind fills it in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from workbench.models.recurrent.factors import Factors, Projected


class Own(Protocol):
    """Hooks of a mixer's own names (TransformerLens'), and those of what is held to make a layer linear."""

    def asks(self, name: str) -> bool:
        """Whether a hook of that name reads or edits."""

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """The value as the hooks of that name leave it; itself where there is none."""


class Kind(Protocol):
    """One kind of recurrent layer. ``mixer`` is Hugging Face's module, its sub-modules perhaps wrapped."""

    name: str
    masks_convolved: bool  # whether padding is zeroed once more behind the convolution

    def made_of(self, module: Any) -> bool:
        """Whether a module is of this kind, by the parts it has."""

    def shape(self, mixer: Any) -> tuple[int, int, int]:
        """(heads H, keys K, values V)."""

    def project(self, mixer: Any, x: Tensor, own: Own) -> Projected:
        """The layer's input [B,T,d_model] as the convolution and the gates take it."""

    def factors(self, mixer: Any, convolved: Tensor, projected: Projected, own: Own) -> Factors:
        """The terms of the recurrence, of the convolution's output behind its nonlinearity [B,T,C]."""

    def finish(self, mixer: Any, y: Tensor, f: Factors, own: Own) -> Tensor:
        """The layer's output [B,T,d_model] of what was read [B,T,H,V], the skip connection not yet added."""


class _Silent:
    """No hooks."""

    def asks(self, name: str) -> bool:
        return False

    def __call__(self, name: str, value: Tensor) -> Tensor:
        return value


silent = _Silent()
_NOTHING = 1e-20  # stands for a zero that is divided by; of no weight in the norm of what it is among ...


def gained(own: Own, y: Tensor, made: Callable[[Tensor], Tensor]) -> Tensor:
    """``made(y)``, which is y times something entry by entry (a gate, the scale of a norm): hook ``gain`` shows and
    edits by what.
    """
    if not own.asks("gain"):
        return made(y)
    least = max(_NOTHING, torch.finfo(y.dtype).tiny)  # ... and no zero itself in half precision
    safe = torch.where(y == 0, torch.full_like(y, least), y)
    return y * own("gain", made(safe) / safe)


def convolve(mixer: Any, u: Tensor) -> Tensor:
    """The causal convolution of u [B,T,C], as a call of the module, so that hooks on it fire."""
    return convolution_of(mixer)(u.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2)


def convolution_of(mixer: Any) -> Any:
    """The module of its causal convolution."""
    return mixer.conv1d if has(mixer, "conv1d") else mixer.conv


def activate(mixer: Any, v: Tensor) -> Tensor:
    """The nonlinearity behind the convolution, where there is one."""
    act = getattr(mixer, "act", None) or ACT2FN[getattr(mixer, "activation", "linear")]
    return act(v)


def single(v: Tensor) -> Tensor:
    """At least single precision, in which states are kept."""
    return v if v.dtype == torch.float64 else v.float()


def has(module: Any, *names: str) -> bool:
    """Whether a module has parts of all these names."""
    return all(getattr(module, name, None) is not None for name in names)
