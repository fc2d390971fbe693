"""Dictionaries of other libraries: readers by number, not by trust, and writers where the other side can hold what we
have.

``read(folder)`` gives the normal form of a SAELens, sparsify, dictionary_learning, OpenMOSS or Llama Scope folder;
``to_dictionary`` makes it one of ours; ``write_sparsify`` and ``write_transcoder_set`` (circuit-tracer) go the other
way, and our own folders load in SAELens as they are. ``read_cross_layer`` and ``write_cross_layer`` are for cross-layer
transcoders; ``BenchSAE`` is what SAEBench takes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.formats.convert import to_dictionary as to_dictionary
    from sae.formats.convert import to_normal as to_normal
    from sae.formats.convert import write_sparsify as write_sparsify
    from sae.formats.cross_layer import CrossLayer as CrossLayer
    from sae.formats.cross_layer import read_cross_layer as read_cross_layer
    from sae.formats.cross_layer import write_cross_layer as write_cross_layer
    from sae.formats.cross_layer import write_transcoder_set as write_transcoder_set
    from sae.formats.libraries import detect as detect
    from sae.formats.libraries import read as read
    from sae.formats.normal import NormalForm as NormalForm
    from sae.formats.saebench import BenchSAE as BenchSAE

_HOME = {
    "BenchSAE": "saebench",
    "CrossLayer": "cross_layer",
    "NormalForm": "normal",
    "detect": "libraries",
    "read": "libraries",
    "read_cross_layer": "cross_layer",
    "to_dictionary": "convert",
    "to_normal": "convert",
    "write_cross_layer": "cross_layer",
    "write_sparsify": "convert",
    "write_transcoder_set": "cross_layer",
}
__all__ = [
    *("BenchSAE", "CrossLayer", "NormalForm", "detect", "read", "read_cross_layer", "to_dictionary", "to_normal"),
    *("write_cross_layer", "write_sparsify", "write_transcoder_set"),
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"sae.formats.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sae.formats' has no attribute {name!r}")
