"""Worlds whose features are known, and how well a dictionary found them.

Definitions are those of SynthSAEBench (Chanin and Garriga-Alonso 2026, arXiv 2602.14687): features with Zipf
frequencies in superposition, a hierarchy whose siblings exclude each other, correlated firing, sizes that vary.

Axes: ``G`` planted features, beside those of :mod:`sae` (``B`` rows, ``D`` their width, ``F`` latents).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.worlds.config import WORLDS as WORLDS
    from sae.worlds.config import WorldConfig as WorldConfig
    from sae.worlds.scoring import Score as Score
    from sae.worlds.scoring import Scorer as Scorer
    from sae.worlds.scoring import score as score
    from sae.worlds.world import World as World

_HOME = {
    "WORLDS": "config",
    "WorldConfig": "config",
    "World": "world",
    "Score": "scoring",
    "Scorer": "scoring",
    "score": "scoring",
}

__all__ = ["WORLDS", "Score", "Scorer", "World", "WorldConfig", "score"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"sae.worlds.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sae.worlds' has no attribute {name!r}")
