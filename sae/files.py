"""Writing files so that a crash leaves the old state or the new one, never half of either.

The rule of this project: a folder is built under a temporary name beside its final one, every file is flushed to disk,
its manifest is written last, and one ``rename`` makes it visible. Readers therefore never see a partial result.
JSON is read strictly: duplicate keys, NaN and over-deep nesting are errors rather than surprises.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae import system
from sae.errors import CorruptError, MissingError, OutOfSpace, UserError

MAX_JSON_BYTES = 64 * 1024 * 1024


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON (sorted keys, no spaces): equal values, equal digest."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one byte string a JSON value has here."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"duplicate key {key!r}")
        out[key] = value
    return out


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def parse_json(
    text: str | bytes, *, where: str, remedy: str = "Remove it and run the command that made it again."
) -> Any:
    """Parse JSON strictly. ``where`` names the source in the error, ``remedy`` what to do about it.

    Raises:
        CorruptError: not JSON, duplicate keys, NaN/Infinity, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as e:
        raise CorruptError(f"{where} is not valid JSON: {e}. {remedy}") from e


def read_json(path: str | Path) -> Any:
    """Read a JSON file strictly (see :func:`parse_json`); a missing file is a :class:`MissingError`."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise CorruptError(
                f"{path} has {size:,} bytes; JSON files here stay below {MAX_JSON_BYTES:,}. This program did not write"
                " it; move it away."
            )
        return parse_json(path.read_bytes(), where=str(path))
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MissingError(
            f"{path} does not exist. Check the path; a result is made again by the command that made it."
        ) from e


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn the operating system's words for a full or read-only disk into ours, naming ``what`` was being written."""
    try:
        yield
    except OSError as e:
        short = e.errno is None and re.search(
            r"\d+ requested and \d+ written", str(e)
        )  # all NumPy says of a short write
        if short or e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutOfSpace(what) from e
        if e.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            hint = "Close what has it open, or choose" if system.windows() else "Choose"
            raise UserError(f"cannot write {what}: {e.strerror}. {hint} a folder you may write to.") from e
        raise


def write_bytes(path: str | Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file atomically: temporary name, fsync, rename, fsync of the folder."""
    path = Path(path)
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    with disk_errors(str(path)):
        try:
            with open(tmp, "wb") as f:
                f.write(data)
                f.flush()
                system.flush(f.fileno())
            os.chmod(tmp, mode)
            system.replace(tmp, path)
            system.flush_path(path.parent)
        finally:
            tmp.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically, readable by people: two-space indent, one final newline."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


@contextmanager
def new_folder(final: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Build a folder in full before it exists under its final name.

    Yields a temporary folder beside ``final``. On a clean exit all files are fsynced and the folder is renamed into
    place; on any error it is removed. With ``replace`` an existing folder changes places with the new one in a single
    step (where the file system can) and is removed afterwards, so that at every moment one of the two is whole under
    ``final``.

    Raises:
        FileExistsError: ``final`` exists and ``replace`` is false.
    """
    final = Path(final)
    with disk_errors(str(final)):
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists() and not replace:
            raise FileExistsError(f"{final} exists")
        tmp = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.part")
        tmp.mkdir()
        try:
            yield tmp
            for p in tmp.rglob("*"):
                if p.is_file():
                    os.chmod(p, 0o644)  # safetensors writes 0600 whatever the umask
                system.flush_path(p)
            take_place(tmp, final)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


def take_place(new: Path, final: Path) -> None:
    """Give a folder that is whole its final name; one that is there already is removed afterwards, so that at every
    moment one of the two is whole under ``final`` (where the file system can exchange two names in one step).
    """
    system.flush_path(new)
    if not final.exists():
        os.rename(new, final)
    elif _exchange(new, final):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
        os.rename(final, old)
        os.rename(new, final)
        shutil.rmtree(old, ignore_errors=True)
    system.flush_path(final.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change places in one step: Linux' ``renameat2`` with RENAME_EXCHANGE.

    False where that does not exist.
    """
    if system.PLATFORM != "linux":
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    done: int = call(here, os.fsencode(a), here, os.fsencode(b), exchange)
    return done == 0
