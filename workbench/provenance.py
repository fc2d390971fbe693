"""What made a folder: the manifest that is written last into every result.

``manifest.json`` names its schema, the kind and id of the result, what made it, the digests of its inputs and of its
own files, and its headline numbers. It holds no time stamp and no absolute path, so the same inputs give the same bytes
and a workspace may be copied. The first eight hex digits of its SHA-256 are the *data version* that pages, figures and
tables show.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from sae.errors import CorruptError, MissingError, NewerSchemaError
from sae.files import read_json, sha256_file, write_json
from sae.strict import StrictConfig, parse_config
from workbench.version import __version__

SCHEMA = 1
MANIFEST = "manifest.json"
NUMBERS: dict[str, int] = {"substitutions": 2}  # 2: all atoms of a write are an arm of their own
"""Schema of the numbers of a kind of result, 1 where it is not listed. It rises when the same recipe gives other
numbers: results of an older one are then not taken for new ones, whatever the version that made them."""
_LIBRARIES = ("torch", "numpy", "h5py", "transformers", "transformer-lens", "scipy", "safetensors")


class FileDigest(StrictConfig):
    """Size and content digest of one file of a result."""

    bytes: int = Field(description="size")
    sha256: str = Field(description="digest of the content")


class Input(StrictConfig):
    """One thing a result was made from. ``digest`` is the input's own manifest (or seal) digest."""

    kind: str = Field(description="kind of result")
    id: str = Field(description="its name in the workspace")
    digest: str = Field(description="SHA-256 of its own manifest (of a store: its seal)")


class Manifest(StrictConfig):
    """The record beside every result. ``numbers`` are headline figures (each with its n where it is an estimate)."""

    workbench_schema: int = Field(SCHEMA, description="version of this form")
    kind: str = Field(description="kind of result: the folder it lies in")
    id: str = Field(description="its name in the workspace")
    command: str = Field("", description="the command that makes it")
    recipe: dict[str, Any] = Field(default_factory=dict, description="what decides its content, as it was asked for")
    code: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "version of the program and of the libraries numbers depend on, commit where it ran from a"
            " checkout, schema of the numbers"
        ),
    )
    inputs: tuple[Input, ...] = Field((), description="what it was made from")
    numbers: dict[str, Any] = Field(
        default_factory=dict, description="headline figures, each with its n where it is an estimate"
    )
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="what it is about; each kind of result names its keys"
    )
    files: dict[str, FileDigest] = Field(
        default_factory=dict, description="every file of the folder (checkpoints excepted) by its path"
    )


@cache
def code_version() -> dict[str, Any]:
    """This program's version, its commit where it runs from a checkout, and the libraries numbers depend on."""
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    out: dict[str, Any] = {"version": __version__, "python": platform.python_version(), "libraries": libraries}
    root = Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        git = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        if git.returncode == 0:
            out["commit"] = git.stdout.strip()
    return out


def numbers_schema(kind: str) -> int:
    """The schema that numbers of this kind of result have now; see :data:`NUMBERS`."""
    return NUMBERS.get(kind, 1)


def write_manifest(
    folder: str | Path,
    kind: str,
    id: str,
    *,
    command: str = "",
    recipe: dict[str, Any] | None = None,
    inputs: list[Input] | None = None,
    numbers: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Manifest:
    """Digest every file of ``folder`` (checkpoints excepted) and write its manifest, last and atomically."""
    folder = Path(folder)
    files = {
        p.relative_to(folder).as_posix(): FileDigest(bytes=p.stat().st_size, sha256=sha256_file(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file()
        and p.name != MANIFEST
        and not p.name.startswith(".")
        and "checkpoints" not in p.relative_to(folder).parts
    }
    manifest = Manifest(
        kind=kind,
        id=id,
        command=command,
        recipe=recipe or {},
        code={**code_version(), "numbers": numbers_schema(kind)},
        inputs=tuple(inputs or ()),
        numbers=numbers or {},
        metadata=metadata or {},
        files=files,
    )
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def _manifest_path(folder: str | Path) -> Path:
    """``manifest.json``, or an activation store's ``seal.json``, which says the same."""
    path, seal = Path(folder) / MANIFEST, Path(folder) / "seal.json"
    return seal if not path.is_file() and seal.is_file() else path


def read_manifest(folder: str | Path) -> Manifest:
    """Read a result's manifest.

    Raises:
        MissingError: the folder has none, so the result is incomplete.
        NewerSchemaError: a newer version of this program wrote it.
        CorruptError: it is not a manifest.
    """
    path = _manifest_path(folder)
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("workbench_schema"), int):
        raise CorruptError(f"{path} is not a manifest of this program. Make the result again.")
    if values["workbench_schema"] > SCHEMA:
        made = (
            (values.get("code") or {}).get("version", "unknown") if isinstance(values.get("code"), dict) else "unknown"
        )
        raise NewerSchemaError(
            f"{path} has schema {values['workbench_schema']} (made by version {made}); this is version {__version__},"
            f" which reads up to schema {SCHEMA}. Upgrade: pip install -U interpretability-workbench"
        )
    try:
        return parse_config(Manifest, values, where=str(path))
    except Exception as e:
        raise CorruptError(str(e)) from e


def manifest_digest(folder: str | Path) -> str:
    """Hex SHA-256 of a result's manifest bytes; the first eight digits are its data version."""
    path = _manifest_path(folder)
    if not path.is_file():
        raise MissingError(f"{folder} has no {MANIFEST}: it is not complete. Run the command that makes it again.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_files(folder: str | Path, manifest: Manifest | None = None) -> list[str]:
    """Names of files whose size or digest differs from the manifest, or that are gone. Empty means intact."""
    folder = Path(folder)
    manifest = manifest or read_manifest(folder)
    bad = []
    for name, want in manifest.files.items():
        p = folder / name
        if not p.is_file() or p.stat().st_size != want.bytes or sha256_file(p) != want.sha256:
            bad.append(name)
    return bad
