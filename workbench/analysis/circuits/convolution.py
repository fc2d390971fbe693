"""A model's short convolutions cut to the position itself, or spread out, while it runs: what an analysis finds then
tells which of it the convolution made.

Weights stay as they are and nothing is trained anew: a cut model has lost what its taps carried. A model that was
trained without them (`mini-mamba-c1`, `mini-mamba-c2`) may do the same by other means.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sae.errors import UsageError
from sae.strict import nearest
from workbench.analysis.circuits.layers import state_layers
from workbench.models.recurrent import RecurrentLayer

SPACING = {"present": 1, "cut": 0, "spread": 2}  # positions between one tap and the next; 0: the position's own alone


@contextmanager
def convolution(model: Any, how: str) -> Iterator[None]:
    """While open, the convolutions of all recurrent layers are ``present``, ``cut`` (the tap of the position itself is
    left) or ``spread`` (tap k reads 2k positions back).

    Raises:
        UsageError: another word, or a model without recurrent layers.
    """
    if how not in SPACING:
        raise UsageError(f"convolution {how!r} is unknown ({nearest(how, list(SPACING))}).")
    layers = state_layers(model)
    if not layers:
        raise UsageError(
            f"{model.cfg.architecture} has no recurrent layers, so no short convolutions to look at. Choose a Mamba,"
            " or leave this analysis out."
        )
    if how == "present":
        yield
        return
    hooks = [hook for layer in layers for hook in _spaced(layer, SPACING[how])]
    with model.hooks(fwd_hooks=hooks):
        yield


def _spaced(layer: RecurrentLayer, spacing: int) -> list[tuple[str, Any]]:
    seen: dict[str, Tensor] = {}

    def read(value: Tensor, hook: Any) -> None:
        seen["u"] = value

    def write(value: Tensor, hook: Any) -> Tensor:
        u, weight = seen.pop("u"), layer.taps
        lags = range(layer.width if spacing else 1)
        moved = (_back(u, lag * spacing) * weight[:, layer.width - 1 - lag] for lag in lags)
        out = sum(moved, torch.zeros_like(value))
        return out if layer.conv_bias is None else out + layer.conv_bias

    return [(layer.hook("conv_in"), read), (layer.hook("conv"), write)]


def _back(u: Tensor, positions: int) -> Tensor:
    """[B,T,C] as it was some positions back, zeros before the first."""
    return torch.nn.functional.pad(u, (0, 0, positions, 0))[:, : u.shape[1]]
