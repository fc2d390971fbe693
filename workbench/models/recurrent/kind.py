"""What every kind of recurrent layer says of itself; one file per kind fills it in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from workbench.models.recurrent.factors import Factors, Projected

Own = Callable[[str, Tensor], Tensor]  # a hook of the mixer's own names (TransformerLens'), where it has one


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


def silent(_name: str, value: Tensor) -> Tensor:
    """No hooks."""
    return value


def convolve(mixer: Any, u: Tensor) -> Tensor:
    """The causal convolution of u [B,T,C], as a call of the module, so that hooks on it fire."""
    return mixer.conv1d(u.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2)


def activate(mixer: Any, v: Tensor) -> Tensor:
    """The nonlinearity behind the convolution."""
    act = getattr(mixer, "act", None) or ACT2FN[mixer.activation]
    return act(v)


def single(v: Tensor) -> Tensor:
    """At least single precision, in which states are kept."""
    return v if v.dtype == torch.float64 else v.float()


def has(module: Any, *names: str) -> bool:
    """Whether a module has parts of all these names."""
    return all(getattr(module, name, None) is not None for name in names)
