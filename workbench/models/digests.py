"""What a model folder holds: its snapshots, and the digest of its weights. Nothing is loaded."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from sae.errors import CorruptError, MissingError, UserError
from sae.files import read_json, sha256_file, sha256_json, write_json
from workbench.config import cache_dir

_WEIGHTS = ("*.safetensors", "*.bin")  # the second where there is none of the first
_WORTH_KEEPING = 1 << 28  # bytes of a file whose digest is kept on disk: about a second of hashing


_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def has_weights(folder: Path) -> bool:
    """Whether a folder itself holds a set of weights."""
    return any((folder / name).is_file() for name in _FILES)


def snapshots_of(folder: Path) -> list[str]:
    """Folders of weights below a model folder, by their number: ``step512``, a trainer's ``checkpoint-1000``."""
    found = [p.name for p in folder.iterdir() if p.is_dir() and has_weights(p)]
    return sorted(
        found, key=lambda r: (int(m[1]) if (m := re.fullmatch(r"(?:step|checkpoint-)(\d+)", r)) else 1 << 60, r)
    )


def folder_digest(folder: Path, snapshot: str | None) -> str:
    """Digest of a model folder's configuration and of its weights at a snapshot (None: of its only ones)."""
    at = folder / snapshot if snapshot else folder
    weights = next((found for pattern in _WEIGHTS if (found := sorted(at.glob(pattern)))), [])
    digest = hashlib.sha256()
    own = at / "config.json"
    for file in [own if own.is_file() else folder / "config.json", *weights]:
        digest.update(f"{file.name} {_digest(file)}\n".encode())
    return digest.hexdigest()


def last_digest(folder: Path) -> str:
    """:func:`folder_digest` of the last snapshot: what a whole folder is known by."""
    known = snapshots_of(folder)
    return folder_digest(folder, known[-1] if known and not has_weights(folder) else None)


def _digest(path: Path) -> str:
    about = path.stat()
    return _digest_once(str(path.resolve()), about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=512)
def _digest_once(path: str, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file, remembered while its size and time stay as they are."""
    if size < _WORTH_KEEPING:
        return sha256_file(path)
    kept = cache_dir() / f"digest-{sha256_json([path, size, mtime_ns])[:32]}.json"
    with suppress(MissingError, CorruptError, KeyError, TypeError):
        return str(read_json(kept)["sha256"])
    digest = sha256_file(path)
    with suppress(OSError, UserError):  # a full or read-only home only costs the next process some seconds
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"sha256": digest})
    return digest
