"""Named lists of latents: plain JSON files in the workspace's ``lists/``, one per list, written atomically.

Each item carries the data version it was added under, so a list says when a latent may mean something else today. Names
are free text; file names are made from them and can never leave the folder.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from sae.errors import ConfigError, CorruptError, MissingError, UsageError
from sae.files import disk_errors, parse_json, read_json, sha256_json, write_json
from sae.strict import StrictConfig, parse_config

SCHEMA = 1
MAX_ITEMS = 10_000
MAX_LISTS = 500


class ListItem(StrictConfig):
    """One latent of a list."""

    dictionary: str = Field(max_length=200, description="id of the dictionary")
    latent: int = Field(ge=0, description="number of the latent")
    version: str = Field(default="", max_length=64, description="data version of its records when it was added")
    note: str = Field(default="", max_length=2000, description="your words")


class LatentList(StrictConfig):
    """A named list. ``id`` is its file name without suffix."""

    workbench_schema: int = Field(SCHEMA, description="version of this form")
    name: str = Field(min_length=1, max_length=120, description="what it is called")
    items: tuple[ListItem, ...] = Field(default=(), max_length=MAX_ITEMS, description="its latents, in your order")

    def with_items(self, items: Sequence[ListItem]) -> LatentList:
        """The list with ``items`` at its end, in their order. A latent that is already in it keeps its place and takes
        the new version, and the new note unless that is empty.

        Raises:
            UsageError: more than :data:`MAX_ITEMS` latents together.
        """
        out = [*self.items]
        places: dict[tuple[str, int], int] = {}
        for j, x in enumerate(out):
            places.setdefault((x.dictionary, x.latent), j)
        for x in items:
            j = places.setdefault((x.dictionary, x.latent), len(out))
            if j == len(out):
                out.append(x)
            else:
                out[j] = x if x.note else x.model_copy(update={"note": out[j].note})
        if len(out) > MAX_ITEMS:
            raise UsageError(
                f"a list holds at most {MAX_ITEMS:,} latents; {self.name!r} would hold {len(out):,}. Choose fewer."
            )
        return self.model_copy(update={"items": tuple(out)})


def list_id(name: str) -> str:
    """File name of a list: letters, digits and dashes of its name, plus four digits of its digest, which names that
    look alike differ in.
    """
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
        raise CorruptError(f"{where} is not a list of latents. Restore it from a copy, or move it away.")
    if values["workbench_schema"] > SCHEMA:
        raise CorruptError(
            f"{where} was written by a newer version of this program. Upgrade: pip install -U"
            " interpretability-workbench"
        )
    return parse_config(LatentList, values, where=where)


def save_list(root: Path, chosen: LatentList, id: str | None = None) -> str:
    """Write a list atomically and return its id. A new list gets an id from its name that no file has; an existing one
    keeps its own.
    """
    id = id or _free_id(root, chosen.name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", id) or ".." in id:
        raise UsageError(
            f"{id!r} is not a name for a list. Use up to 80 letters, digits and . _ -, beginning with a letter or"
            " digit."
        )
    folder = root / "lists"
    with disk_errors(str(folder)):
        folder.mkdir(exist_ok=True)
    write_json(folder / f"{id}.json", chosen.model_dump(mode="json"))
    return id


def _free_id(root: Path, name: str) -> str:
    """:func:`list_id`, numbered where a list that was renamed, or a file that cannot be read, has it."""
    id = list_id(name)
    taken = (f"{id}-{n}" for n in range(2, 10 * MAX_LISTS))
    while os.path.lexists(root / "lists" / f"{id}.json"):
        id = next(taken)
    return id


def delete_list(root: Path, id: str) -> None:
    """Remove a list that :func:`read_lists` found."""
    if id in read_lists(root)[0]:
        (root / "lists" / f"{id}.json").unlink()


def add_to_list(root: Path, id: str, items: Sequence[ListItem]) -> LatentList:
    """Add latents to an existing list in one write; see :meth:`LatentList.with_items`.

    Raises:
        MissingError: no list has this id.
        UsageError: too many latents; nothing is written.
    """
    known, _ = read_lists(root)
    if id not in known:
        raise MissingError(f"list {id!r} is not in this workspace. Choose another on the page of lists.")
    changed = known[id].with_items(items)
    save_list(root, changed, id)
    return changed


def import_list(data: bytes) -> LatentList:
    """A list from an uploaded file, checked like any other.

    Raises:
        CorruptError, ConfigError: not JSON, too deep, unknown keys, values out of range.
    """
    return _parse(parse_json(data, where="the uploaded file"), "the uploaded file")
