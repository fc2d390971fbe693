"""The Interpretability Workbench: latents of Transformers and Mambas across layers, architectures and training.

Importing this package is cheap: names are resolved when first used, so neither torch nor h5py is loaded before then.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "load_model": "workbench.models",
    "ActivationStore": "workbench.activations",
    "Workspace": "workbench.workspace",
}
__all__ = ["ActivationStore", "Workspace", "__version__", "load_model"]

if TYPE_CHECKING:
    from workbench.activations import ActivationStore
    from workbench.models import load_model
    from workbench.workspace import Workspace


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")
