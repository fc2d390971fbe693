"""Sparse dictionary learning on activations: raw activations in, raw activations out.

Knows torch and safetensors only. Everything public is named here and loaded on first use, so importing the package
is free. Shape suffixes used throughout: ``B`` rows (tokens), ``D`` width of a row, ``F`` latents, ``K`` latents kept
per row.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.activation import TopK as TopK
    from sae.config import ActivationConfig as ActivationConfig
    from sae.config import SAEConfig as SAEConfig
    from sae.config import TopKConfig as TopKConfig
    from sae.config import TrainingConfig as TrainingConfig
    from sae.config import TranscoderConfig as TranscoderConfig
    from sae.config import WriteConfig as WriteConfig
    from sae.folder import load as load
    from sae.init import InitConfig as InitConfig
    from sae.log import TensorBoardLogger as TensorBoardLogger
    from sae.log import WandbLogger as WandbLogger
    from sae.loop import train as train
    from sae.loop import train_many as train_many
    from sae.metrics import evaluate as evaluate
    from sae.model import SAE as SAE
    from sae.model import ThresholdSAE as ThresholdSAE
    from sae.model import TopKSAE as TopKSAE
    from sae.presets import preset as preset
    from sae.pruning import prune as prune
    from sae.refitting import refit as refit
    from sae.threshold import to_jumprelu as to_jumprelu
    from sae.trainer import Trainer as Trainer
    from sae.transcoder import Transcoder as Transcoder
    from sae.writes import WriteSAE as WriteSAE

_HOME = {
    "TopKSAE": "sae.model",
    "SAE": "sae.model",
    "TopKConfig": "sae.config",
    "SAEConfig": "sae.config",
    "TranscoderConfig": "sae.config",
    "WriteConfig": "sae.config",
    "Transcoder": "sae.transcoder",
    "WriteSAE": "sae.writes",
    "TopK": "sae.activation",
    "Trainer": "sae.trainer",
    "train": "sae.loop",
    "train_many": "sae.loop",
    "load": "sae.folder",
    "evaluate": "sae.metrics",
    "ThresholdSAE": "sae.model",
    "to_jumprelu": "sae.threshold",
    "prune": "sae.pruning",
    "refit": "sae.refitting",
    "preset": "sae.presets",
    "TensorBoardLogger": "sae.log",
    "WandbLogger": "sae.log",
    "TrainingConfig": "sae.config",
    "ActivationConfig": "sae.config",
    "InitConfig": "sae.init",
}

__all__ = [
    *("SAE", "ActivationConfig", "InitConfig", "SAEConfig", "TensorBoardLogger", "ThresholdSAE", "TopK", "TopKConfig"),
    *("TopKSAE", "Trainer", "TrainingConfig", "Transcoder", "TranscoderConfig", "WandbLogger"),
    *("WriteConfig", "WriteSAE"),
    *("evaluate", "load", "preset", "prune", "refit", "to_jumprelu", "train", "train_many"),
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
