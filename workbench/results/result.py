"""A result folder as its readers open it: complete, of the right kind, with its id, data version and metadata.

:class:`workbench.results.records.LatentRecords`, :class:`workbench.results.matches.MatchRecords`,
:class:`workbench.results.evolution.Evolution` and :class:`workbench.results.circuits.CircuitResult` read what is
particular to their kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd

from sae.errors import CorruptError, MissingError
from workbench.provenance import MANIFEST, Manifest, check_files, manifest_digest, read_manifest


class Result:
    """One complete folder of a workspace.

    ``kind`` is its room, ``noun`` what a person calls it, ``verb`` the command that makes it.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    verb: ClassVar[str]

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest

    @classmethod
    def read_manifest(cls, folder: Path, *, verify: bool = False) -> Manifest:
        """The manifest of a complete folder of this kind; with ``verify`` the digests of all its files are compared.

        Raises:
            MissingError: not there or not complete. CorruptError: another kind of result, or a file changed.
        """
        if not (folder / MANIFEST).is_file():
            raise MissingError(f"{folder} holds no {cls.noun}. `workbench {cls.verb}` makes what belongs there.")
        manifest = read_manifest(folder)
        if manifest.kind != cls.kind:
            raise CorruptError(
                f"{folder} is a result of kind {manifest.kind!r}, not {cls.noun}. Give a folder of that kind."
            )
        if verify and (bad := check_files(folder, manifest)):
            raise CorruptError(
                f"{folder}: {', '.join(bad)} changed since it was written. Remove the folder and run:"
                f" {manifest.command or f'workbench {cls.verb}'}"
            )
        return manifest

    @classmethod
    def read_tables(cls, folder: Path, tables: Iterable[str]) -> Manifest:
        """The manifest of a complete folder of this kind in which none of its tables (without ``.parquet``) is missing.

        Raises:
            MissingError: not there or not complete. CorruptError: another kind of result, or a table is gone.
        """
        manifest = cls.read_manifest(folder)
        for name in tables:
            if not (folder / f"{name}.parquet").is_file():
                raise CorruptError(f"{folder}/{name}.parquet is missing. Remove the folder and run: {manifest.command}")
        return manifest

    @property
    def id(self) -> str:
        """Its id in the workspace."""
        return self.manifest.id

    @property
    def version(self) -> str:
        """Data version: first eight hex digits of the manifest's digest."""
        return manifest_digest(self.folder)[:8]

    @property
    def metadata(self) -> dict[str, Any]:
        """What it is about, as its manifest says; each reader names the keys."""
        return self.manifest.metadata


class TabledResult(Result):
    """A result whose folder holds Parquet tables; each is read when it is first used.

    ``tables``: their names, without ``.parquet``.
    """

    tables: ClassVar[tuple[str, ...]]

    def __init__(self, folder: Path, manifest: Manifest):
        super().__init__(folder, manifest)
        self._read: dict[str, pd.DataFrame] = {}

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a complete folder of this kind.

        Raises:
            MissingError: not there or not complete. CorruptError: another kind of result, or a table is gone.
        """
        folder = Path(folder)
        return cls(folder, cls.read_tables(folder, cls.tables))

    def table(self, name: str) -> pd.DataFrame:
        """One of :attr:`tables`. Not to be written to."""
        if name not in self._read:
            self._read[name] = pd.read_parquet(self.folder / f"{name}.parquet")
        return self._read[name]
