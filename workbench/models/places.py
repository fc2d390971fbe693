"""Where the model folders of a workspace lie on this machine.

A workspace names a model of its own by an id and holds ``models/<id>/``: the model itself where ``workbench pretrain``
made it, or a pointer with the digest of its weights. Where a folder with those weights lies is the user's setting,
``models.json`` below ``XDG_CONFIG_HOME`` (else ``~/.config``), outside every workspace.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae.errors import CorruptError, MismatchError, MissingError
from sae.files import read_json, write_json
from workbench.config import config_dir
from workbench.workspace import opened_workspaces

POINTER = "pointer.json"
_SCHEMA = 1
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._+-]*")


def settings_file() -> Path:
    """The user's setting; it need not exist."""
    return config_dir() / "models.json"


def place_of(digest: str) -> Path | None:
    """The folder (or GGUF file) that has weights of this digest, as far as this user said."""
    found = _settings().get(digest)
    return None if found is None else Path(found)


def remember(digest: str, path: Path) -> None:
    """Note where weights of this digest lie on this machine."""
    file, at = settings_file(), str(path.expanduser().absolute())
    known = _settings()
    if known.get(digest) != at:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"schema": _SCHEMA, "places": {**known, digest: at}})


def _settings() -> dict[str, str]:
    try:
        values = read_json(settings_file())
    except MissingError:
        return {}
    places = values.get("places") if isinstance(values, dict) else None
    if not isinstance(places, dict):
        raise CorruptError(f"{settings_file()} is not the list of model folders it should be. Remove it.")
    return {str(k): str(v) for k, v in places.items()}


def pointer_of(root: Path, id: str) -> dict[str, Any] | None:
    """What a workspace says of a model folder that lies outside it; None where it has no such pointer."""
    try:
        values = read_json(root / "models" / id / POINTER)
    except MissingError:
        return None
    return values if isinstance(values, dict) and "weights" in values else None


def in_workspace(name: str, folder_of: Callable[[Path], Path], digest_of: Callable[[Path], str]) -> Path | None:
    """The folder of a model that an open workspace made or points to; None where none of them knows the id.

    Args:
        folder_of: the model folder behind a place (a GGUF file is converted). digest_of: the digest of its weights.

    Raises:
        MissingError: where it lies is not known on this machine; the message names the command that says it.
        MismatchError: the folder has other weights now.
    """
    if not _ID.fullmatch(name):
        return None
    for root in opened_workspaces():
        own = root / "models" / name
        if (own / "config.json").is_file():
            return own
        pointer = pointer_of(root, name)
        if pointer is None:
            continue
        digest = str(pointer["weights"])
        place = place_of(digest)
        if place is None or not place.exists():
            gone = "" if place is None else f" (it was {place})"
            raise MissingError(
                f"where the model {name!r} of workspace {root.name} lies on this machine is not known{gone}. Say it"
                f" once: workbench models {name} FOLDER --workspace {root}"
            )
        folder = folder_of(place)
        if digest_of(folder) != digest:
            raise MismatchError(
                f"model {name!r} of workspace {root.name} has weights {digest[:12]}; {place} now has"
                f" {digest_of(folder)[:12]}. Say where the old ones lie: workbench models {name} FOLDER --workspace"
                f" {root}; or harvest the new ones under another folder name."
            )
        return folder
    return None
