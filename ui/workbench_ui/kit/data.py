"""Files opened once and shared by all browser sessions. Keys are ids and digests, never tables or arrays."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from sae.errors import MissingError
from workbench.results.lists import LatentList, read_lists
from workbench_ui.kit import index as _index_module
from workbench_ui.kit.index import Dictionary, Index, read_index
from workbench_ui.kit.once import once_per_run

if TYPE_CHECKING:
    from workbench.results.circuits import CircuitResult
    from workbench.results.records import LatentRecords
    from workbench.results.searching import Haystack

WORKSPACE = "WORKBENCH_WORKSPACE"


def workspace_folder() -> Path:
    """The folder this process browses.

    Raises:
        MissingError: the process was not started through ``workbench ui``.
    """
    folder = os.environ.get(WORKSPACE)
    if not folder:
        raise MissingError("no workspace was named. Start with: workbench ui --workspace DIR")
    return Path(folder)


@once_per_run
def index() -> Index:
    """What the workspace holds now: read again as soon as a result appears, goes, or is made again."""
    root = workspace_folder()
    return _index(str(root), results_key(), root.is_dir())


@st.cache_resource(show_spinner=False, max_entries=2)
def _index(root: str, signature: str, exists: bool) -> Index:
    return read_index(root)


def lists() -> tuple[dict[str, LatentList], list[tuple[str, str]]]:
    """:func:`workbench.results.lists.read_lists` of the workspace, read again when a file of them changes.

    Not to be written to.
    """
    return _lists(*lists_now())


def lists_now() -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """What caches of lists depend on: the workspace, and which files of lists there are now."""
    root = workspace_folder()
    found = []
    with contextlib.suppress(OSError):
        found = sorted(
            (e.name, s.st_mtime_ns, s.st_ino)
            for e in os.scandir(root / "lists")
            for s in [e.stat(follow_symlinks=False)]
        )
    return str(root), tuple(found)


@st.cache_resource(show_spinner=False, max_entries=4)
def _lists(
    root: str, signature: tuple[tuple[str, int, int], ...]
) -> tuple[dict[str, LatentList], list[tuple[str, str]]]:
    return read_lists(Path(root))


def records(d: Dictionary) -> LatentRecords | None:
    """The latent records of a dictionary, or None while they are not computed.

    Raises:
        UserError: they exist and cannot be read.
    """
    return None if d.records is None else open_records(str(d.records.path), d.key)


@st.cache_resource(show_spinner=False, max_entries=8)
def open_records(folder: str, version: str) -> LatentRecords:
    from workbench.results.records import LatentRecords

    return LatentRecords.open(folder)


@st.cache_resource(show_spinner=False, max_entries=8)
def haystack(folder: str, version: str) -> Haystack:
    """What the search box searches."""
    from workbench.results.searching import Haystack

    return Haystack.of(open_records(folder, version))


def holding(folder: str, version: str, text: str) -> np.ndarray:
    """Which latents hold ``text``, literally and whatever its case: bool [L]."""
    return haystack(folder, version).holding(text)


@once_per_run
def results_key() -> str:
    """Changes whenever any result of the workspace does."""
    return str(hash(_index_module.signature(workspace_folder())))


@st.cache_resource(show_spinner=False, max_entries=4)
def _kinds(path: str, version: str) -> np.ndarray | None:
    import h5py

    try:
        with h5py.File(path, "r") as f:
            return np.asarray(f["plan/kinds"])
    except (OSError, KeyError):
        return None


def sequence_kinds(d: Dictionary) -> np.ndarray | None:
    """What each sequence of the dictionary's store is: 0 text, 1 repeats and copied snippets, 2 agreement sentences;
    None where the store is not at hand.
    """
    store = index().find("stores", str(d.about.get("store") or ""))
    return None if store is None else _kinds(str(store.path / "plan.h5"), store.version)


def synthetic_share(d: Dictionary, records: LatentRecords, n: int = 3) -> np.ndarray | None:
    """How many of every latent's ``n`` strongest contexts are text made by a program, of 1; None where nothing says."""
    kinds = sequence_kinds(d)
    if kinds is None:
        return None
    sequences = records.sequences(n)
    known = (sequences >= 0) & (sequences < len(kinds))
    made = known & (kinds[sequences.clip(0, len(kinds) - 1)] > 0)
    return np.asarray(made.sum(1) / np.maximum(known.sum(1), 1))


@st.cache_resource(show_spinner=False, max_entries=12)
def open_circuit(folder: str, version: str) -> CircuitResult:
    """A result, kept; ``version`` makes a new one be read anew."""
    from workbench.results.circuits import CircuitResult

    return CircuitResult.open(folder)
