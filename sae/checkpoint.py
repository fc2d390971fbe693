"""Checkpoints of our training: folders that appear whole or not at all, and resume to the bit.

``step_00001234/`` holds ``state.safetensors`` (weights, optimiser, counters, generator, log), ``state.json`` (step,
data position, config) and, written last, ``MANIFEST.json`` with size and SHA-256 of both. Resume takes the newest
folder whose manifest verifies. The two newest are always kept.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.errors import CorruptError, MissingError
from sae.files import new_folder, read_json, sha256_file, write_bytes, write_json
from sae.folder import read_tensors

log = logging.getLogger(__name__)
SCHEMA = 1
FILES = ("state.safetensors", "state.json")


def log_spaced(total_steps: int) -> list[int]:
    """Steps 1, 2, 4, 8, ... and the last: where a series of checkpoints is worth having."""
    return sorted({2**i for i in range(total_steps.bit_length()) if 2**i < total_steps} | {total_steps})


def write(folder: Path, step: int, tensors: dict[str, Tensor], plain: dict[str, Any]) -> Path:
    """Write ``folder/step_<step>`` atomically.

    Raises:
        OutOfSpace: the disk is full; earlier checkpoints are untouched.
    """
    from safetensors.torch import save as to_bytes

    final = folder / f"step_{step:08d}"
    with new_folder(final, replace=True) as tmp:
        write_bytes(tmp / FILES[0], to_bytes({n: t.detach().cpu().contiguous() for n, t in tensors.items()}))
        write_json(tmp / FILES[1], {"schema": SCHEMA, **plain})
        entries = {name: {"bytes": (tmp / name).stat().st_size, "sha256": sha256_file(tmp / name)} for name in FILES}
        write_json(tmp / "MANIFEST.json", {"schema": SCHEMA, "kind": "checkpoint", "files": entries})
    return final


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, plain values) of one checkpoint folder, verified.

    Raises:
        MissingError, CorruptError: not there, or not what its manifest says.
    """
    manifest = read_json(path / "MANIFEST.json")
    for name in FILES:
        entry = manifest.get("files", {}).get(name, {})
        if (
            not (path / name).is_file()
            or (path / name).stat().st_size != entry.get("bytes")
            or sha256_file(path / name) != entry.get("sha256")
        ):
            raise CorruptError(
                f"{path / name} is not what its manifest says. Remove {path}; an older checkpoint will be used."
            )
    return read_tensors(path / FILES[0]), read_json(path / FILES[1])


def steps_in(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(p for p in folder.glob("step_*") if p.is_dir())


def newest(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint in ``folder`` that verifies, or None. Damaged ones are passed over with a warning."""
    for path in reversed(steps_in(folder)):
        try:
            return path, *read(path)
        except (CorruptError, MissingError) as e:
            log.warning("passing over a damaged checkpoint: %s", e)
    return None


def values_of(folder: Path) -> dict[str, Any] | None:
    """The plain values of the newest whole checkpoint in ``folder``, without its tensors; None where there is none."""
    for path in reversed(steps_in(folder)):
        try:
            entry = read_json(path / "MANIFEST.json")["files"][FILES[1]]
            if sha256_file(path / FILES[1]) == entry["sha256"]:
                return dict(read_json(path / FILES[1]))
        except (CorruptError, MissingError, OSError, KeyError, TypeError):
            continue  # :func:`newest` passes it over, too, and says so
    return None


def prune(folder: Path, keep: set[int]) -> None:
    """Remove checkpoints that are neither in ``keep`` nor among the two newest, and leftovers of interrupted writes."""
    for path in steps_in(folder)[:-2]:
        if int(path.name.removeprefix("step_")) not in keep:
            shutil.rmtree(path, ignore_errors=True)
    for path in [*folder.glob(".step_*.part"), *folder.glob(".step_*.old")]:
        shutil.rmtree(path, ignore_errors=True)
