"""The activation store: what models computed on a token plan, kept so that nothing is lost, repeated or changed.

The format is described in ``docs/store-format.md``. Table of contents:

- :class:`ActivationStore` (``reader``): open a store; rows, sequences, tokens, shuffled batches.
- :class:`HarvestRecipe` (``recipe``), :func:`harvest` (``harvesting``): fill a store from models.
- :class:`StreamingStore` (``ring``): the same batches without keeping the store.
- :class:`StoreSpec` (``spec``): the document that decides a store's content.
- :func:`fill` (``workers``), :func:`write_shard` (``writer``): the torch-free writer.
- :func:`check` (``verify``): prove a store, set bad shards aside. ``foreign``: files of unknown origin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "ActivationStore": "reader",
    "Batches": "batches",
    "HarvestRecipe": "recipe",
    "StoreSpec": "spec",
    "StreamingStore": "ring",
    "check": "verify",
    "describe_store": "seal",
    "fill": "workers",
    "harvest": "harvesting",
    "write_shard": "writer",
}
__all__ = [
    "ActivationStore",
    "Batches",
    "HarvestRecipe",
    "StoreSpec",
    "StreamingStore",
    "check",
    "describe_store",
    "fill",
    "harvest",
    "write_shard",
]

if TYPE_CHECKING:
    from workbench.activations.batches import Batches
    from workbench.activations.harvesting import harvest
    from workbench.activations.reader import ActivationStore
    from workbench.activations.recipe import HarvestRecipe
    from workbench.activations.ring import StreamingStore
    from workbench.activations.seal import describe_store
    from workbench.activations.spec import StoreSpec
    from workbench.activations.verify import check
    from workbench.activations.workers import fill
    from workbench.activations.writer import write_shard


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
