"""The last step of every training into a workspace: the manifest, written when everything else is there."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from workbench.provenance import Input, write_manifest
from workbench.run import Run


def publish(
    folder: Path,
    id: str,
    *,
    recipe: BaseModel,
    inputs: Sequence[Input],
    numbers: dict[str, Any],
    metadata: dict[str, Any],
    run: Run,
) -> None:
    """Complete ``dictionaries/<id>``: write its manifest, then drop the checkpoints it could have been resumed from."""
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
