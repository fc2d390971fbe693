"""The Interpretability Workbench: latents of Transformers and Mambas across layers, architectures and training.

One function per verb of the command line (see :mod:`workbench.verbs`), and what they work on. Importing this package is
cheap: names are resolved when first used, so neither torch nor h5py is loaded before then.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from workbench.version import __version__ as __version__

_HOME = {
    "load_model": "workbench.models",
    "ActivationStore": "workbench.activations",
    "Item": "workbench.workspace",
    "Run": "workbench.run",
    "Workspace": "workbench.workspace",
    "harvest": "workbench.verbs.making",
    "train": "workbench.verbs.making",
    "import_dictionary": "workbench.verbs.making",
    "evaluate": "workbench.verbs.measuring",
    "verify": "workbench.verbs.measuring",
    "features": "workbench.verbs.measuring",
    "explain": "workbench.verbs.measuring",
    "score": "workbench.verbs.measuring",
    "map": "workbench.verbs.measuring",
    "steer": "workbench.verbs.measuring",
    "trust": "workbench.verbs.trusting",
    "compare": "workbench.verbs.analysing",
    "substitute": "workbench.verbs.analysing",
    "transplant": "workbench.verbs.analysing",
    "circuits": "workbench.verbs.analysing",
    "graph": "workbench.verbs.analysing",
    "intervene": "workbench.verbs.analysing",
    "evolve": "workbench.verbs.analysing",
    "states": "workbench.verbs.analysing",
    "reproduce": "workbench.verbs.publishing",
    "export": "workbench.verbs.publishing",
}
__all__ = [
    *("ActivationStore", "Item", "Run", "Workspace", "__version__", "circuits", "compare", "evaluate", "evolve"),
    *("explain", "export", "features", "graph", "harvest", "import_dictionary", "intervene", "load_model", "map"),
    *("reproduce", "score", "states", "steer", "substitute", "train", "transplant", "trust", "verify"),
]

if TYPE_CHECKING:
    from workbench.activations import ActivationStore as ActivationStore
    from workbench.models import load_model as load_model
    from workbench.run import Run as Run
    from workbench.verbs.analysing import circuits as circuits
    from workbench.verbs.analysing import compare as compare
    from workbench.verbs.analysing import evolve as evolve
    from workbench.verbs.analysing import graph as graph
    from workbench.verbs.analysing import intervene as intervene
    from workbench.verbs.analysing import states as states
    from workbench.verbs.analysing import substitute as substitute
    from workbench.verbs.analysing import transplant as transplant
    from workbench.verbs.making import harvest as harvest
    from workbench.verbs.making import import_dictionary as import_dictionary
    from workbench.verbs.making import train as train
    from workbench.verbs.measuring import evaluate as evaluate
    from workbench.verbs.measuring import explain as explain
    from workbench.verbs.measuring import features as features
    from workbench.verbs.measuring import map as map
    from workbench.verbs.measuring import score as score
    from workbench.verbs.measuring import steer as steer
    from workbench.verbs.measuring import verify as verify
    from workbench.verbs.publishing import export as export
    from workbench.verbs.publishing import reproduce as reproduce
    from workbench.verbs.trusting import trust as trust
    from workbench.workspace import Item as Item
    from workbench.workspace import Workspace as Workspace


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
