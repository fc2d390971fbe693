"""One latent space over several sources: training snapshots, layers, models, architectures.

A crosscoder is an SAE on the concatenation of its sources; everything an SAE does, it does. Shape suffixes: ``B`` rows,
``S`` sources, ``F`` latents, ``D`` the concatenated width, ``D_s`` the width of one source. Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosscoders.config import PRESETS as PRESETS
    from crosscoders.config import CrosscoderConfig as CrosscoderConfig
    from crosscoders.config import preset as preset
    from crosscoders.metrics import SourceEvaluation as SourceEvaluation
    from crosscoders.metrics import evaluate_sources as evaluate_sources
    from crosscoders.model import Crosscoder as Crosscoder
    from crosscoders.scaling import ScalingMeter as ScalingMeter

_HOME = {
    "Crosscoder": "crosscoders.model",
    "CrosscoderConfig": "crosscoders.config",
    "PRESETS": "crosscoders.config",
    "ScalingMeter": "crosscoders.scaling",
    "SourceEvaluation": "crosscoders.metrics",
    "evaluate_sources": "crosscoders.metrics",
    "preset": "crosscoders.config",
}

__all__ = [
    "PRESETS",
    "Crosscoder",
    "CrosscoderConfig",
    "ScalingMeter",
    "SourceEvaluation",
    "evaluate_sources",
    "preset",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'crosscoders' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
