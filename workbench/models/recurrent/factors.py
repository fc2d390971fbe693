"""What one pass through a recurrent layer is made of. Axes: B sequences, T positions, H heads, K keys, V values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = ("read", "write_key", "write_value", "erase_key", "erase_strength")  # hooked whenever the layer runs


@dataclass(frozen=True)
class Projected:
    """What a layer makes of its input before the convolution: ``conv_in`` [B,T,C]; ``gate`` and ``rest`` pass by it."""

    conv_in: Tensor
    gate: Tensor
    rest: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Factors:
    """The terms of the recurrence (see :mod:`workbench.models.recurrent`).

    Attributes:
        read, write_key: [B,T,H,K]. write_value: [B,T,H,V].
        decay: makes [B,T,H,1,1] or [B,T,1,K,V], which may be large.
        fused: y [B,T,H,V] by the layer's own scan of these factors.
        skip: [B,T,H,V] what is added to y; None without. gate: as the layer's output takes it.
        strength: [B,T,H,1] or [B,T,1,V] how much of its content (x, v) a write takes in: Δ or β.
        erase_key, erase_strength: [B,T,H,K] and [B,T,H]; None where nothing is erased.
    """

    read: Tensor
    write_key: Tensor
    write_value: Tensor
    decay: Callable[[], Tensor]
    fused: Callable[[], Tensor]
    skip: Tensor | None
    gate: Tensor
    strength: Tensor
    erase_key: Tensor | None = None
    erase_strength: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(B, T, H, K, V)."""
        n, t, h, k = self.write_key.shape
        return n, t, h, k, self.write_value.shape[-1]


def advance(
    state: Tensor,
    decay: Tensor,
    write: Tensor | None,
    erase_key: Tensor | None = None,
    erase_strength: Tensor | None = None,
) -> Tensor:
    """The next state [..., H, K, V]: decay (broadcasting against it), erase [..., H, K] at [..., H], write of its
    shape; None leaves a step out. Linear in the state, so it carries differences of states as well.
    """
    state = decay * state
    if erase_key is not None and erase_strength is not None:
        held = torch.einsum("...hk,...hkv->...hv", erase_key, state)
        state = state - (erase_strength[..., None] * erase_key)[..., None] * held[..., None, :]
    return state if write is None else state + write


def outer(key: Tensor, value: Tensor) -> Tensor:
    """[..., K] and [..., V] -> [..., K, V]."""
    return key[..., None] * value[..., None, :]
