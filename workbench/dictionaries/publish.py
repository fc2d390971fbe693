"""The last step of every training into a workspace: the manifest, written when everything else is there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sae.changes import Change, said
from workbench.provenance import MANIFEST, Input, write_manifest
from workbench.results.reuse import mismatch
from workbench.run import Run
from workbench.workspace import Workspace

RESUMED = {  # what a person calls the entries of a checkpoint's contract (see :func:`sae.loop.contract`)
    "data.order.seed": "data_seed",
    "data.seed": "seed",
    "data.batch_size": "batch_size",
    "data.store_id": "store (digest of its plan)",
    "data.store_content": "store (digest of its rows)",
    "rate": "peak learning rate (lr)",
    "total_steps": "training steps (tokens / batch_size)",
}


def work_folder(workspace: Workspace, id: str, contract: dict[str, Any], run: Run, *, otherwise: str) -> Path:
    """Where a dictionary that is not there, or is to be replaced, is trained: ``dictionaries/<id>``, or beside it while
    an older one stays. Checkpoints there are of this very run.

    Args:
        contract: what :func:`sae.loop.contract` says of the run.

    Raises:
        MismatchError: an interrupted run of other settings lies there, and ``run`` does not say ``replace``.
    """
    final, anew = workspace.new_path("dictionaries", id), workspace.next_path("dictionaries", id)
    if not workspace.complete("dictionaries", id):
        found = _changes(final, contract)
        if not found:
            return final
        if not run.replace:
            raise mismatch(f"an interrupted run in dictionaries/{id}", found, otherwise)
        run.say(f"{id}: trained anew ({said(found)})")
    if anew.is_dir() and (_changes(anew, contract) or (anew / MANIFEST).exists()):
        shutil.rmtree(anew)  # an interrupted replacement by something else
    return anew


def _changes(folder: Path, contract: dict[str, Any]) -> list[Change]:
    from sae.checkpoint import values_of
    from sae.loop import changes_since

    values = values_of(folder / "checkpoints")
    if values is None:
        return []
    return [c._replace(key=RESUMED.get(c.key, c.key)) for c in changes_since(values, contract)]


def publish(
    workspace: Workspace,
    folder: Path,
    id: str,
    *,
    recipe: BaseModel,
    inputs: Sequence[Input],
    numbers: dict[str, Any],
    metadata: dict[str, Any],
    run: Run,
) -> None:
    """Complete ``dictionaries/<id>``: write the manifest into the folder it was trained in, drop the checkpoints it
    could have been resumed from, and put it in the place of an older one.
    """
    write_manifest(
        folder,
        "dictionaries",
        id,
        command=run.command,
        recipe=recipe.model_dump(mode="json"),
        inputs=list(inputs),
        numbers=numbers,
        metadata=metadata,
    )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if folder != workspace.path("dictionaries", id):
        workspace.take_place("dictionaries", id)
