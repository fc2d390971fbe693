"""The activation store: what models computed on a token plan, kept so that nothing is lost, repeated or changed.

The format is described in ``docs/store-format.md``. Table of contents:

- :class:`ActivationStore` (``read.store``): open a store; rows, sequences, tokens, shuffled batches.
- :class:`HarvestRecipe` (``harvesting.recipe``), :func:`harvest` (``harvesting.run``): fill a store from models.
- :class:`StreamingStore` (``harvesting.ring``): the same batches without keeping the store.
- :class:`StoreSpec` (``format.spec``): the document that decides a store's content.
- :func:`fill` (``write.fill``), :func:`write_shard` (``write.writer``): the torch-free writer.
- :func:`check` (``write.verify``): prove a store, set bad shards aside. ``foreign.inspect``: files of unknown origin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "ActivationStore": "read.store",
    "Batches": "read.batches",
    "HarvestRecipe": "harvesting.recipe",
    "StoreSpec": "format.spec",
    "StreamingStore": "harvesting.ring",
    "check": "write.verify",
    "describe_store": "format.seal",
    "fill": "write.fill",
    "harvest": "harvesting.run",
    "write_shard": "write.writer",
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
    from workbench.activations.format.seal import describe_store
    from workbench.activations.format.spec import StoreSpec
    from workbench.activations.harvesting.recipe import HarvestRecipe
    from workbench.activations.harvesting.ring import StreamingStore
    from workbench.activations.harvesting.run import harvest
    from workbench.activations.read.batches import Batches
    from workbench.activations.read.store import ActivationStore
    from workbench.activations.write.fill import fill
    from workbench.activations.write.verify import check
    from workbench.activations.write.writer import write_shard


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
