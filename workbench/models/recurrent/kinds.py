"""Which kind of recurrent layer a module is, by its parts; and why the others are refused."""

from __future__ import annotations

from typing import Any

from workbench.models.recurrent.gated_deltanet import GatedDeltaNet
from workbench.models.recurrent.kind import Kind, has
from workbench.models.recurrent.mamba1 import Mamba1
from workbench.models.recurrent.mamba2 import Mamba2
from workbench.models.recurrent.short_convolution import ShortConvolution

KINDS: tuple[Kind, ...] = (Mamba1(), Mamba2(), GatedDeltaNet(), ShortConvolution())

_REFUSED = (  # parts of a module -> its kind, and what its state is that the hooks here do not show
    (("rg_lru", "linear_x"), "RG-LRU", "its state is one number per channel that gates write without key and value"),
    (("time_decay", "time_first"), "RWKV-4", "its state is a running weighted mean with a maximum taken out"),
    (("x_r", "x_w", "r_k"), "RWKV-7", "its state is multiplied by a full matrix of rank one per head and position"),
)


def kind_of(module: Any) -> Kind | None:
    """The kind of a module; None where it is none of those shown here."""
    return next((kind for kind in KINDS if kind.made_of(module)), None)


def refused(module: Any) -> tuple[str, str] | None:
    """(kind, why its states are not shown) of a recurrent module that is none of those shown here."""
    return next(((kind, why) for parts, kind, why in _REFUSED if has(module, *parts)), None)
