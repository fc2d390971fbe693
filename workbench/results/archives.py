"""Reading ``.npz`` archives that somebody else may have made: nothing is unpacked to disk, and what an archive claims
is bounded.

An archive is refused where it has too many entries, an entry twice, one that is no array, or claims more than fits. So
neither path traversal nor links nor an archive bomb can do anything.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from sae.errors import CorruptError, MissingError
from sae.strict import nearest

MAX_ENTRIES = 4096
MAX_BYTES = 8 * 2**30  # of one array
MAX_RATIO, SMALL = 200, 16 * 2**20  # bytes of an array per byte in the archive, where it is not small anyway


def npz_names(path: str | Path) -> list[str]:
    """Names of the arrays of an archive.

    Raises:
        MissingError: there is no such file. CorruptError: it is no archive of arrays, or one that claims too much.
    """
    with _opened(Path(path)) as archive:
        return [e.filename.removesuffix(".npy") for e in archive.infolist()]


def read_npz(path: str | Path, name: str) -> np.ndarray:
    """One array of an archive.

    Raises:
        MissingError: no such file, or no such array (the message names the nearest). CorruptError: see
            :func:`npz_names`; also where the array's header and its bytes disagree.
    """
    path = Path(path)
    with _opened(path) as archive:
        known = [e.filename.removesuffix(".npy") for e in archive.infolist()]
        if name not in known:
            raise MissingError(f"{path.parent.name} has no array {name!r} ({nearest(name, known)}).")
        with archive.open(f"{name}.npy") as stream:
            size = archive.getinfo(f"{name}.npy").file_size
            version = npy.read_magic(stream)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(stream)
            if dtype.hasobject or int(np.prod(shape, dtype=object)) * dtype.itemsize > size:
                raise CorruptError(
                    f"{path}: array {name!r} claims {dtype} {shape}, which its {size:,} bytes cannot hold. Run the"
                    " command that made it again."
                )
        with archive.open(f"{name}.npy") as stream:
            found: np.ndarray = npy.read_array(stream, allow_pickle=False)
            return found


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, once its list of contents is acceptable."""
    if not path.is_file():
        raise MissingError(f"{path} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive:
            _check(path, archive.infolist())
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError, RuntimeError) as e:
        raise CorruptError(f"{path} is not a whole archive of arrays ({e}). Run the command that made it again.") from e


def _check(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = [e.filename for e in entries]
    if len(entries) > MAX_ENTRIES:
        raise CorruptError(
            f"{path} has {len(entries):,} entries; an archive of arrays has at most {MAX_ENTRIES:,}. This"
            " program did not write it."
        )
    if len(set(names)) != len(names):
        raise CorruptError(f"{path} holds an entry twice. This program did not write it.")
    for e in entries:
        if not e.filename.endswith(".npy") or "/" in e.filename or "\\" in e.filename or e.filename.startswith("."):
            raise CorruptError(f"{path} holds {e.filename[:80]!r}, which is no array that this program writes.")
        if e.file_size > MAX_BYTES or e.file_size > max(SMALL, MAX_RATIO * e.compress_size):
            raise CorruptError(
                f"{path}: {e.filename[:80]!r} claims {e.file_size:,} bytes from {e.compress_size:,}. This program did"
                " not write it."
            )
