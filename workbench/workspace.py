"""A workspace: a plain folder of results, one sub-folder per kind, every result complete or absent.

No database, no server, no pickle, no absolute path: a workspace may be copied. A result is complete when its
``manifest.json`` exists (``seal.json`` for activation stores), because that file is written last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sae.errors import MissingError, NewerSchemaError, UsageError, UserError
from sae.files import disk_errors, new_folder, read_json, take_place, write_json
from sae.strict import nearest
from sae.system import reserved_name
from workbench.provenance import MANIFEST, Input, Manifest, manifest_digest, read_manifest, write_manifest
from workbench.version import __version__

KINDS = (
    "models",
    "stores",
    "dictionaries",
    "latents",
    "evaluations",
    "matches",
    "transplants",
    "substitutions",
    "circuits",
    "states",
    "evolution",
    "maps",
    "graphs",
    "doses",
    "explanations",
    "scores",
    "trust",
    "claims",
    "lists",
    "exports",
)
MADE_BY = {  # kind -> the command that makes one
    "models": "pretrain RECIPE",
    "stores": "harvest RECIPE",
    "dictionaries": "train RECIPE",
    "latents": "features DICTIONARY",
    "evaluations": "evaluate DICTIONARY",
    "matches": "compare A B",
    "transplants": "transplant DICTIONARY_A DICTIONARY_B",
    "substitutions": "substitute DICTIONARY",
    "circuits": "circuits MODEL",
    "states": "states MODEL",
    "evolution": "evolve",
    "maps": "map DICTIONARY",
    "graphs": "graph PROMPT",
    "doses": "steer DICTIONARY PROMPT --add LATENT=1 --dose 0,2,4,8 --keep",
    "explanations": "explain DICTIONARY",
    "scores": "score DICTIONARY",
    "trust": "trust DICTIONARY",
    "claims": "reproduce all",
    "exports": "export SPEC",
}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._+-]{0,119}")
_SCHEMA = 1


def check_id(id: str) -> str:
    """Return ``id`` if it is a valid identifier.

    Raises:
        UsageError: empty, longer than 120 characters, or with characters that could leave the workspace.
    """
    if not isinstance(id, str) or not _ID.fullmatch(id) or ".." in id or id.count("__") > 1:
        raise UsageError(
            f"{id!r} is not an id. Ids are letters, digits and @ . _ + -, at most 120 characters, starting with a"
            " letter or digit."
        )
    return id


def new_id(id: str) -> str:
    """Return ``id`` if a result made now may be called so: ``__`` joins the two sides of a comparison and is in no
    other id.

    Raises:
        UsageError: see :func:`check_id`, or ``__`` in it, or a name that Windows keeps for a device.
    """
    if reserved_name(check_id(id)):
        raise UsageError(f"{id!r} is not an id: Windows keeps no folder of that name. Choose another.")
    if "__" in check_id(id):
        raise UsageError(f"{id!r} is not an id: '__' joins the two sides of a comparison. Use one underscore, or '-'.")
    return id


def dictionary_id(model: str, site: str, expansion: int | str, *, revision: str | None = None, seed: int = 0) -> str:
    """``<model>[@revision].<site>-<n>x[.s<seed>]``, for example ``mini-pythia@step512.L2R-8x.s1``."""
    rev = f"@{revision}" if revision else ""
    tail = f".s{seed}" if seed else ""
    return new_id(f"{model}{rev}.{site}-{expansion}x{tail}")


@dataclass(frozen=True)
class Item:
    """One complete result of a workspace."""

    kind: str
    id: str
    path: Path
    beside: tuple[Item, ...] = field(default=(), compare=False, repr=False)  # other results of the same call

    @property
    def all(self) -> tuple[Item, ...]:
        """Every result of the call that made this one, in order; this one first."""
        return (self, *self.beside)

    @property
    def manifest(self) -> Manifest:
        """Its manifest, read afresh."""
        return read_manifest(self.path)

    @property
    def digest(self) -> str:
        """SHA-256 of its manifest."""
        return manifest_digest(self.path)

    @property
    def version(self) -> str:
        """The data version shown beside every number: the first eight hex digits of :attr:`digest`."""
        return self.digest[:8]

    def as_input(self) -> Input:
        """This result as an input of another one's manifest."""
        return Input(kind=self.kind, id=self.id, digest=self.digest)


def all_of(items: list[Item]) -> Item:
    """The first of several results, with the others beside it."""
    return replace(items[0], beside=tuple(items[1:]))


_OPENED: list[Path] = []


def opened_workspaces() -> tuple[Path, ...]:
    """Folders of the workspaces this process has opened, the one last used first."""
    return tuple(_OPENED)


class Workspace:
    """A folder of results. ``Workspace(path)`` opens it; with ``create`` (the default) a missing folder is made.

    Raises:
        MissingError: the folder is missing and ``create`` is false.
        NewerSchemaError: a newer version of this program made it.
        UserError: the path is a file, or may not be written.
    """

    def __init__(self, root: str | Path, *, create: bool = True):
        self.root = Path(root).expanduser().absolute()
        marker = self.root / "workspace.json"
        if not self.root.is_dir():
            if not create and not self.root.exists():
                raise MissingError(f"workspace {root} does not exist. `workbench demo --workspace {root}` makes one.")
            try:
                with disk_errors(str(root)):
                    self.root.mkdir(parents=True, exist_ok=True)  # processes that begin together may all make it
            except FileExistsError as e:
                raise UserError(f"{root} is a file; a workspace is a folder. Give another path.") from e
        if marker.exists():
            schema = read_json(marker).get("schema", 0)
            if schema > _SCHEMA:
                raise NewerSchemaError(
                    f"workspace {root} has schema {schema}; version {__version__} reads up to {_SCHEMA}. Upgrade: pip"
                    " install -U interpretability-workbench"
                )
        elif create:
            write_json(marker, {"schema": _SCHEMA})
        self.use()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it for itself."""
        return Workspace, (str(self.root),)

    def use(self) -> None:
        """Make it the first place where ids of models are looked up; opening one does."""
        _OPENED[:] = [self.root, *(r for r in _OPENED if r != self.root)]

    def __repr__(self) -> str:
        return f"Workspace({str(self.root)!r})"

    def path(self, kind: str, id: str) -> Path:
        """The folder a result has or would have. Ids are checked, so the path stays inside the workspace."""
        if kind not in KINDS:
            raise UsageError(f"{kind!r} is not a kind of result ({nearest(kind, list(KINDS))})")
        return self.root / kind / check_id(id)

    def new_path(self, kind: str, id: str) -> Path:
        """The folder of a result that is about to be made.

        Raises:
            UsageError: another result's id differs by case alone: macOS and Windows take both for one.
        """
        path = self.path(kind, id)
        if path.parent.is_dir():
            for name in os.listdir(path.parent):
                if name != id and name.lower() == id.lower():
                    raise UsageError(
                        f"{kind}/{id} differs from {name!r}, which is there, by case alone, and many systems take both"
                        " for one folder. Choose another id."
                    )
        return path

    def complete(self, kind: str, id: str) -> bool:
        """Whether a result exists in full."""
        return (self.path(kind, id) / ("seal.json" if kind == "stores" else MANIFEST)).is_file()

    def get(self, kind: str, id: str) -> Item:
        """A complete result.

        Raises:
            MissingError: absent or incomplete; the message names the nearest existing id.
        """
        if not self.complete(kind, id):
            known = [i.id for i in self.items(kind)]
            verb = "demo --no-ui" if id == "demo" else MADE_BY.get(kind)
            made = f"; `workbench {verb}` makes one" if verb else ""
            hint = nearest(id, known) if known else f"{self.root.name}/{kind} is empty{made}"
            raise MissingError(f"{kind}/{id} is not in {self.root} ({hint})")
        return Item(kind, id, self.path(kind, id))

    def items(self, kind: str) -> list[Item]:
        """All complete results of a kind, by name. Symlinks and half-written folders are passed over."""
        folder = self.root / kind
        if not folder.is_dir():
            return []
        found = []
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False) and _ID.fullmatch(entry.name) and self.complete(kind, entry.name):
                found.append(Item(kind, entry.name, Path(entry.path)))
        return found

    def next_path(self, kind: str, id: str) -> Path:
        """Where a result is made anew while the one with its name stays: ``<kind>/.next/<id>``. An interrupted making
        goes on there; :meth:`take_place` ends it.
        """
        return self.path(kind, id).parent / ".next" / id

    def take_place(self, kind: str, id: str) -> None:
        """Put what was made anew, and is complete, in the place of the old result, which is removed."""
        new = self.next_path(kind, id)
        with disk_errors(str(new)):
            take_place(new, self.path(kind, id))
            with suppress(OSError):  # others may be made anew beside it
                new.parent.rmdir()

    @contextmanager
    def create(self, kind: str, id: str, *, replace: bool = False, **about: Any) -> Iterator[Path]:
        """Build a result in a temporary folder; on a clean exit its manifest is written and the folder appears whole.

        ``about`` goes to :func:`workbench.provenance.write_manifest`; a callable value is called at the end, so numbers
        known only then can be given as ``numbers=lambda: {...}``.
        """
        with new_folder(self.new_path(kind, id), replace=replace) as tmp:
            yield tmp
            write_manifest(tmp, kind, id, **{k: v() if callable(v) else v for k, v in about.items()})
