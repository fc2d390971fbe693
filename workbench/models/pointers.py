"""Pointers to models in a workspace: which models its results read, and where their numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae.errors import MissingError
from sae.files import sha256_json, write_json
from workbench.config import data_dir
from workbench.models.load import bundled, revisions
from workbench.provenance import read_manifest
from workbench.workspace import Workspace


def register_bundled(workspace: Workspace, wanted: Sequence[str]) -> list[str]:
    """A pointer in ``models/`` for every bundled model of ``wanted``, with the numbers of its card; their names.

    Raises:
        MissingError: the bundled models are not installed.
    """
    names = [n for n in bundled() if n in wanted]
    if not names:
        raise MissingError(f"the bundled models are missing in {data_dir() / 'models'}. Reinstall the package.")
    for name in names:
        if workspace.complete("models", name):
            continue
        card = read_manifest(data_dir() / "models" / name)
        pointer = {
            "bundled": name,
            "revisions": revisions(name),
            "manifest_sha256": sha256_json(card.model_dump(mode="json")),
        }
        with workspace.create(
            "models", name, command="workbench demo", numbers=_headline(card.numbers), metadata=pointer
        ) as folder:
            write_json(folder / "pointer.json", pointer)
    return names


def _headline(numbers: dict[str, Any]) -> dict[str, Any]:
    """The plain numbers of a model's own manifest, its criteria on held-out prompts among them."""
    plain = {k: v for k, v in numbers.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    criteria = numbers.get("criteria", {})
    return (
        plain
        | {"heldout_loss": criteria.get("loss")}
        | {k: criteria[k] for k in ("copy_gap", "single_match", "agreement") if k in criteria}
    )
