"""Named lists of latents: plain JSON files in the workspace's ``lists/``, one per list, written atomically.

Each item carries the data version it was added under, so a list says when a latent may mean something else today. Names
are free text; file names are made from them and can never leave the folder.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

from pydantic import Field

from sae.errors import ConfigError, CorruptError, MissingError, UsageError
from sae.files import parse_json, read_json, sha256_json, write_json
from sae.strict import StrictConfig, parse_config

SCHEMA = 1
MAX_ITEMS = 10_000
MAX_LISTS = 500


class ListItem(StrictConfig):
    """One latent of a list."""

    dictionary: str = Field(max_length=200)
    latent: int = Field(ge=0)
    version: str = Field(default="", max_length=64)
    note: str = Field(default="", max_length=2000)


class LatentList(StrictConfig):
    """A named list. ``id`` is its file name without suffix."""

    workbench_schema: int = SCHEMA
    name: str = Field(min_length=1, max_length=120)
    items: tuple[ListItem, ...] = Field(default=(), max_length=MAX_ITEMS)

    def with_item(self, item: ListItem) -> LatentList:
        """The list with ``item`` at its end; a latent that is already in it gets the new note and version in its place."""
        same = [j for j, x in enumerate(self.items) if (x.dictionary, x.latent) == (item.dictionary, item.latent)]
        items = [*self.items]
        if same:
            items[same[0]] = item
        else:
            items.append(item)
        if len(items) > MAX_ITEMS:
            raise UsageError(f"a list holds at most {MAX_ITEMS:,} latents.")
        return self.model_copy(update={"items": tuple(items)})


def list_id(name: str) -> str:
    """File name of a list: letters, digits and dashes of its name, plus four digits of its digest so that names never collide."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-").lower()[:60]
    return f"{slug or 'list'}-{sha256_json(name)[:4]}"


def read_lists(root: Path) -> tuple[dict[str, LatentList], list[tuple[str, str]]]:
    """All lists by id, and what could not be read as (file, reason). Symlinks and foreign files are passed over."""
    folder = root / "lists"
    found: dict[str, LatentList] = {}
    problems: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.json"))[:MAX_LISTS] if folder.is_dir() else []:
        if path.is_symlink() or not path.is_file():
            continue
        try:
            found[path.stem] = _parse(read_json(path), str(path.name))
        except (CorruptError, ConfigError, MissingError) as e:
            problems.append((path.name, str(e)))
    return found, problems


def _parse(values: Any, where: str) -> LatentList:
    if not isinstance(values, dict) or not isinstance(values.get("workbench_schema"), int):
        raise CorruptError(f"{where} is not a list of latents.")
    if values["workbench_schema"] > SCHEMA:
        raise CorruptError(f"{where} was written by a newer version of this program.")
    return parse_config(LatentList, values, where=where)


def save_list(root: Path, chosen: LatentList, id: str | None = None) -> str:
    """Write a list atomically and return its id. A new list gets an id from its name; an existing one keeps its own."""
    id = id or list_id(chosen.name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", id) or ".." in id:
        raise UsageError(f"{id!r} is not the name of a list.")
    folder = root / "lists"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{id}.json", chosen.model_dump(mode="json"))
    return id


def delete_list(root: Path, id: str) -> None:
    """Remove a list that :func:`read_lists` found."""
    if id in read_lists(root)[0]:
        (root / "lists" / f"{id}.json").unlink()


def add_to_list(root: Path, id: str, item: ListItem) -> LatentList:
    """Add a latent to an existing list, or change its note there.

    Raises:
        MissingError: no list has this id.
    """
    known, _ = read_lists(root)
    if id not in known:
        raise MissingError(f"list {id!r} is not in this workspace.")
    changed = known[id].with_item(item)
    save_list(root, changed, id)
    return changed


def import_list(data: bytes) -> LatentList:
    """A list from an uploaded file, checked like any other.

    Raises:
        CorruptError, ConfigError: not JSON, too deep, unknown keys, values out of range.
    """
    return _parse(parse_json(data, where="the uploaded file"), "the uploaded file")
