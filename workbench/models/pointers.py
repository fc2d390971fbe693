"""Pointers to models in a workspace: which models its results read, and where their numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae.changes import Change
from sae.errors import MismatchError, MissingError, UsageError
from sae.files import read_json, sha256_json, write_json
from sae.strict import nearest
from workbench.config import data_dir
from workbench.models.digests import last_digest, snapshots_of
from workbench.models.load import bundled, find_folder, model_id, revisions
from workbench.models.packaged import PACKAGED
from workbench.models.places import POINTER, place_of, pointer_of, remember
from workbench.provenance import read_manifest
from workbench.results.family import family
from workbench.results.reuse import mismatch
from workbench.results.stale import known_results, read_model
from workbench.run import QUIET, Run
from workbench.workspace import Workspace


def by_id(workspace: Workspace, name: str, *, run: Run = QUIET) -> str:
    """What results call a model: a folder (or GGUF file) that is named by its path gets a pointer in the workspace and
    is known by its own name from then on; bundled names, ids and names of the hub stay as they are.

    Raises:
        MismatchError: results were made with another model of that name, and ``run`` does not say ``replace``.
            UsageError: it is called like a bundled model, and is another one. MissingError: not a model folder.
    """
    path = Path(name).expanduser()
    if name in bundled() or name in PACKAGED or not (path.is_dir() or (path.is_file() and path.suffix == ".gguf")):
        return name
    folder = find_folder(str(path.absolute()))
    assert folder is not None
    id, digest = model_id(name), last_digest(folder)
    if id in bundled():
        if digest == last_digest(data_dir() / "models" / id):
            return id
        raise UsageError(f"the folder {name} is called like the bundled model {id!r} and holds another one. Rename it.")
    own = workspace.path("models", id)
    if (own / "config.json").is_file():
        if path.resolve() == own.resolve() or digest == last_digest(own):
            return id
        raise UsageError(f"models/{id} was made in this workspace and {name} is another model. Rename that folder.")
    old = pointer_of(workspace.root, id)
    if old is not None and old["weights"] != digest:
        change = Change("weights", str(old["weights"])[:12], digest[:12])
        if not run.replace and read_model(known_results(workspace), id):
            raise mismatch(f"models/{id}", [change], "or rename the folder")
        run.say(f"models/{id}: points to other weights now ({change})")
    remember(digest, path)
    if old is None or old["weights"] != digest:
        pointer = {"folder": path.name, "weights": digest, "revisions": snapshots_of(folder)}
        config = read_json(folder / "config.json")
        about = pointer | {"model_type": str(config.get("model_type", "")), "family": family(config)}
        with workspace.create(
            "models", id, replace=True, command=f"workbench models {id} FOLDER", metadata=about
        ) as new:
            write_json(new / POINTER, pointer)
    return id


def set_place(workspace: Workspace, id: str, path: Path) -> str:
    """Say where a model that the workspace points to lies on this machine; the digest of its weights.

    Raises:
        MissingError: the workspace has no such pointer, or there is no model folder. MismatchError: other weights.
    """
    pointer = pointer_of(workspace.root, id)
    if pointer is None:
        known = [i.id for i in workspace.items("models") if pointer_of(workspace.root, i.id)]
        hint = nearest(id, known) if known else "it points to none"
        raise MissingError(f"{workspace.root} does not point to a model {id!r} ({hint}).")
    folder = find_folder(str(path.expanduser().absolute()))
    assert folder is not None
    digest, wanted = last_digest(folder), str(pointer["weights"])
    if digest != wanted:
        raise MismatchError(
            f"{path} holds weights {digest[:12]}; results of {id!r} in {workspace.root.name} were made with"
            f" {wanted[:12]}. Name the folder that holds those."
        )
    remember(digest, path)
    return digest


def describe_models(workspace: Workspace) -> list[dict[str, str]]:
    """Every model a workspace names: its id, what it is, and where it lies on this machine."""
    found = []
    for item in workspace.items("models"):
        pointer = pointer_of(workspace.root, item.id)
        if pointer is not None:
            place = place_of(str(pointer["weights"]))
            there = place is not None and place.exists()
            kind, where = "folder", str(place) if there else f"not known here: workbench models {item.id} FOLDER"
        elif (item.path / "config.json").is_file():
            kind, where = "made here", f"models/{item.id}"
        else:
            kind, where = "bundled", "with the program"
        found.append({"id": item.id, "kind": kind, "where": where})
    return found


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
