"""Dictionaries of other libraries: readers by number, not by trust, and writers where the other side can hold what we
have.

``read(folder)`` gives the normal form of a SAELens, sparsify, dictionary_learning, OpenMOSS or Llama Scope folder;
``to_dictionary`` makes it one of ours, ``write_sparsify`` goes the other way (our own folders load in SAELens as they
are), and ``BenchSAE`` is what SAEBench takes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.formats.convert import to_dictionary as to_dictionary
    from sae.formats.convert import to_normal as to_normal
    from sae.formats.convert import write_sparsify as write_sparsify
    from sae.formats.libraries import detect as detect
    from sae.formats.libraries import read as read
    from sae.formats.normal import NormalForm as NormalForm
    from sae.formats.saebench import BenchSAE as BenchSAE

_HOME = {
    "BenchSAE": "saebench",
    "NormalForm": "normal",
    "detect": "libraries",
    "read": "libraries",
    "to_dictionary": "convert",
    "to_normal": "convert",
    "write_sparsify": "convert",
}
__all__ = ["BenchSAE", "NormalForm", "detect", "read", "to_dictionary", "to_normal", "write_sparsify"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"sae.formats.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sae.formats' has no attribute {name!r}")
