"""Reading weights, our own as strictly as anybody else's: safetensors directly, pickles only in a limited child
process.

A safetensors file cannot run code, but it may hide a duplicate key (the last one silently wins), so its header is read
strictly first. A ``.pt`` file is a pickle: it is opened with ``weights_only=True`` in a child process with limits on
memory, processor time and file size, which writes plain safetensors back; the parent never unpickles anything.
"""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae import system
from sae.errors import CorruptError, MissingError, UntrustedFile, UserError
from sae.files import parse_json
from sae.formats.unpickle import CHILD_SECONDS

MAX_HEADER = 100 * 1024 * 1024
LIBRARIES = 2**30  # bytes that torch alone may hold in the child
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def _regular_file(path: Path, refuse: type[UserError] = UntrustedFile) -> int:
    """Size of a regular file that is not a link; a FIFO or device would hang or read elsewhere."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise MissingError(f"{path} does not exist.") from e
    if stat.S_ISLNK(info.st_mode) and "blobs" in os.path.realpath(path).split(os.sep):
        info = os.stat(path)  # the hub cache keeps files as links into its own blobs folder
    if not stat.S_ISREG(info.st_mode):
        raise refuse(f"{path} is not a regular file; weights are read from regular files only.")
    return info.st_size


def read_safetensors(path: str | Path, *, own: bool = False) -> dict[str, Tensor]:
    """All tensors of a safetensors file whose header is whole, unique and consistent.

    Args:
        mine: the file should be one of our own: then what is wrong with it is damage (CorruptError), not distrust
        (UntrustedFile).

    Raises:
        MissingError: no such file. UntrustedFile, CorruptError: not a whole, well-formed safetensors file, or a
        duplicate key.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    refuse: type[UserError] = CorruptError if own else UntrustedFile
    size = _regular_file(path, refuse)
    try:
        _check_header(path, size)
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as e:
        remedy = "Remove the folder and make it again." if own else "Download it again."
        raise refuse(f"{path} is not a whole safetensors file: {e}. {remedy}") from e


def _check_header(path: Path, size: int) -> None:
    """Raise ValueError unless the header has a possible length and is JSON without duplicate keys."""
    with open(path, "rb") as f:
        head = f.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise ValueError(f"its header claims {length} bytes of a file of {size}")
        header = f.read(length)
    try:
        parse_json(header.rstrip(b" "), where="the header")
    except CorruptError as e:
        raise ValueError(f"its header is not JSON with unique keys ({e.__cause__})") from e


def read_state_dict(path: str | Path, *, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Tensors of a pickled ``.pt`` state dict, read by a limited child process with ``weights_only=True``.

    Args:
        max_bytes: memory the child may use beyond its libraries; default 4 × the file's size + 1 GiB.

    Raises:
        UntrustedFile: it holds anything but tensors and plain values, or the child hit a limit.
    """
    path = Path(path)
    size = _regular_file(path)
    with open(path, "rb") as f:
        magic = f.read(4)
    if magic != _ZIP and not magic.startswith(_PICKLE):
        raise UntrustedFile(f"{path} is neither a torch archive nor a pickle (starts with {magic!r}).")
    limit = max_bytes or 4 * size + 2**30
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "tensors.safetensors"
        try:
            child = system.run_limited(
                [sys.executable, "-m", "sae.formats.unpickle", str(path.absolute()), str(out), str(limit)],
                seconds=2 * CHILD_SECONDS,
                memory=limit + LIBRARIES,
                env=system.bare_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        except subprocess.TimeoutExpired as e:
            raise UntrustedFile(f"{path} took longer than {2 * CHILD_SECONDS} s to read.") from e
        if child.returncode or not out.exists():
            raise UntrustedFile(
                f"{path} is refused: {_reason(child)}. Only tensors and plain values are read from pickles."
            )
        return load_and_forget(out)


def _reason(child: subprocess.CompletedProcess[bytes]) -> str:
    """Why the child gave up, in one line: torch buries the cause between advice that does not apply here."""
    lines = [line.strip() for line in child.stderr.decode(errors="replace").splitlines() if line.strip()]
    cause = [line for line in lines if line.startswith(("Trying to", "Unsupported", "Can only", "Detected pickle"))]
    return ((cause or lines[-1:] or [f"exit code {child.returncode}"])[0])[:300].rstrip(".")


def load_and_forget(path: Path) -> dict[str, Tensor]:
    """Read our own temporary safetensors file into memory that does not map it."""
    from safetensors.torch import load

    return load(path.read_bytes())


def read_config(path: str | Path) -> dict[str, Any]:
    """A foreign JSON object, read strictly.

    Raises:
        MissingError, CorruptError: not there, or not one JSON object.
    """
    path = Path(path)
    size = _regular_file(path)
    if size > 16 * 2**20:
        raise CorruptError(f"{path} has {size:,} bytes; a dictionary's configuration is far smaller.")
    value = parse_json(path.read_bytes(), where=str(path), remedy="Download it again.")
    if not isinstance(value, dict):
        raise CorruptError(f"{path} holds a {type(value).__name__}, not a configuration object.")
    return value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A foreign YAML mapping.

    Raises:
        MissingError, CorruptError: not there, or not one mapping.
    """
    import yaml

    path = Path(path)
    _regular_file(path)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as e:
        raise CorruptError(f"{path} cannot be read: {str(e).splitlines()[0]}.") from e
    if not isinstance(value, dict):
        raise CorruptError(f"{path} is not a configuration.")
    return value


def need(tensors: dict[str, Tensor], names: list[str], where: str, library: str) -> None:
    """Raise :class:`CorruptError` unless all named tensors are there."""
    missing = [n for n in names if n not in tensors]
    if missing:
        raise CorruptError(
            f"{where} is not a {library} dictionary: {', '.join(missing)} missing, found"
            f" {', '.join(sorted(tensors)) or 'nothing'}."
        )


def in_float32(tensors: dict[str, Tensor], *aside: str) -> tuple[dict[str, Tensor], torch.dtype]:
    """(floating tensors in float32, everything else as it is; the precision the file is in).

    The precision is that of the widest floating tensor, but for those named ``aside`` (statistics kept in another).
    """
    found = [t.dtype for name, t in tensors.items() if t.is_floating_point() and name not in aside and t.dim() > 1]
    dtype = torch.float32
    for i, d in enumerate(found):
        dtype = d if i == 0 else torch.promote_types(dtype, d)
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, dtype


def refuse_negative(threshold: Tensor | None, where: str) -> None:
    """Raise :class:`CorruptError` where a threshold without a ReLU before it (circuit-tracer's JumpReLU) is below zero:
    latents below zero would pass it, and those have no place here.
    """
    if threshold is not None and bool((threshold < 0).any()):
        raise CorruptError(
            f"{where}: {int((threshold < 0).sum())} thresholds are below zero, with which latents below zero would"
            " pass; such latents have no place here."
        )
