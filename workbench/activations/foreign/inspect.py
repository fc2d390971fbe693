"""HDF5 files of unknown origin: opened only in a process with limits, which may crash or hang without harm.

Our own stores do not come this way: they are proven by their digests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae import system
from sae.errors import MissingError, UntrustedFile, UsageError

_CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Limits:
    """What a foreign file may cost: bytes of memory, seconds, bytes declared, bytes returned, objects, nesting."""

    memory: int = 2 << 30
    cpu_seconds: int = 10
    wall_seconds: int = 30
    declared: int = 16 << 30
    returned: int = 256 << 20
    objects: int = 10_000
    depth: int = 8
    attribute: int = 1 << 20
    chunk: int = 64 << 20


def inspect(path: str | Path, limits: Limits | None = None) -> dict[str, Any]:
    """What a foreign HDF5 file holds: ``{"datasets": [{"name", "dtype", "shape", "bytes"}]}``. No data is read.

    Raises:
        UntrustedFile: links, external or virtual storage, unknown filters or types, or anything beyond the limits.
        MissingError: no such file.
    """
    answer, _ = _ask(Path(path), {}, limits or Limits())
    return {"datasets": answer["datasets"]}


def read_foreign(path: str | Path, dataset: str, rows: slice | None = None, limits: Limits | None = None) -> np.ndarray:
    """Numbers of one dataset of a foreign HDF5 file (rows by step 1).

    Raises:
        UntrustedFile: see :func:`inspect`; also no such dataset, or more bytes than the limit.
    """
    limits = limits or Limits()
    name = "/" + dataset.strip("/")
    about = {d["name"]: d for d in inspect(path, limits)["datasets"]}
    if name not in about:
        raise UsageError(f"{path} has no dataset {name!r} (it has {', '.join(list(about)[:8]) or 'none'})")
    shape = about[name]["shape"]
    first, last, step = (rows or slice(None)).indices(shape[0] if shape else 0)
    if step != 1 or not shape:
        raise UsageError("rows of a foreign dataset are read by slices with step 1")
    nbytes = max(0, last - first) * about[name]["bytes"] // max(1, shape[0])
    if nbytes > limits.returned:
        raise UntrustedFile(
            f"{path}: {nbytes:,} bytes were asked for at once, more than the limit of {limits.returned:,}. Read fewer"
            " rows at a time."
        )
    answer, data = _ask(Path(path), {"dataset": name, "rows": [first, last]}, limits)
    shape = [max(0, last - first), *shape[1:]]
    if answer["shape"] != shape or answer["dtype"] != about[name]["dtype"] or len(data) != nbytes:
        raise UntrustedFile(
            f"{path} gave {len(data):,} bytes of {answer['dtype']} {answer['shape']} where it had declared"
            f" {about[name]['dtype']} {shape}. It is damaged, or made to mislead: fetch it again from whoever made it."
        )
    return np.frombuffer(data, answer["dtype"]).reshape(shape).copy()


def _ask(path: Path, request: dict[str, Any], limits: Limits) -> tuple[dict[str, Any], bytes]:
    """Put a request to a fresh child; returns its answer and the bytes after it."""
    try:
        fd = system.open_file(path)
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist.") from None
    try:
        text = json.dumps({**request, "limits": asdict(limits)})
        child = system.run_limited(
            [sys.executable, "-I", str(_CHILD), text],
            seconds=limits.wall_seconds,
            memory=limits.memory,
            env=system.bare_environment(),
            stdin=fd,
        )
    except subprocess.TimeoutExpired:
        raise UntrustedFile(
            f"{path} was not read: opening it took more than {limits.wall_seconds} s. Copy it to a faster disk; if it"
            " stays so, do not trust the file."
        ) from None
    finally:
        os.close(fd)
    line, _, data = child.stdout.partition(b"\n")
    try:
        answer = json.loads(line)
    except ValueError:
        raise UntrustedFile(
            f"{path} was not read: the process that opened it ended with code {child.returncode} (its memory and time"
            " are limited). Fetch the file again; if it stays so, do not trust it."
        ) from None
    if not answer["ok"]:
        raise UntrustedFile(f"{path} was not read: {answer['why']}.")
    return answer, data
