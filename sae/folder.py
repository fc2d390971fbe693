"""A dictionary on disk: the two files SAELens reads, written so that what is loaded is what was trained.

``cfg.json`` holds the eleven keys of SAELens 6 plus ``metadata``; ``sae_weights.safetensors`` holds ``W_enc`` (D, F),
``W_dec`` (F, D), ``b_enc`` and ``b_dec``. Scales are folded in, so nothing else is needed to use them.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.errors import CorruptError
from sae.files import new_folder, read_json, write_bytes, write_json
from sae.formats.tensors import read_safetensors

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SAE_LENS_VERSION = "6.0.0"

Reader = Callable[[dict[str, Any], dict[str, Tensor], str], Any]
_READERS: dict[tuple[str, str], Reader] = {}
_PROVIDERS = {  # whose readers register when they are imported, by kind or by architecture
    "crosscoder": "crosscoders.folder",
    "transcoder": "sae.transcoder",
    "write": "sae.writes",
    "topk": "sae.model",
    "jumprelu": "sae.threshold",
    "standard": "sae.threshold",
}


def register(architecture: str, kind: str, reader: Reader) -> None:
    """Tell :func:`load` who builds dictionaries of this (architecture, metadata.kind) from (cfg, tensors, path)."""
    _READERS[architecture, kind] = reader


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one of our own safetensors files, read as strictly as a foreign one.

    Raises:
        MissingError, CorruptError: no such file, or not a whole safetensors file with unique keys.
    """
    return read_safetensors(path, own=True)


def check_shapes(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]], where: str) -> None:
    """Raise :class:`CorruptError` unless exactly these tensors with these shapes are there and finite."""
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if found != expected:
        raise CorruptError(
            f"{where}: cfg.json says tensors of shapes {expected}, {WEIGHTS} holds {found}. Restore the folder from a"
            " copy, or make it again."
        )
    for name, t in tensors.items():
        if not torch.isfinite(t).all():
            raise CorruptError(
                f"{where}: {name} holds NaN or infinity. Restore the folder from a copy, or make it again."
            )


def dimensions(cfg: dict[str, Any], where: str, *more: str) -> tuple[int, ...]:
    """``d_in``, ``d_sae`` and further whole numbers of a ``cfg.json``.

    Raises:
        CorruptError: one is missing or not a whole number.
    """
    try:
        return tuple(int(cfg[key]) for key in ("d_in", "d_sae", *more))
    except (KeyError, TypeError, ValueError) as e:
        raise CorruptError(
            f"{where}/{CFG}: {', '.join(('d_in', 'd_sae', *more))} must be whole numbers ({e!r})."
        ) from e


def load(path: str | Path) -> Any:
    """The dictionary in a folder, of the class its ``cfg.json`` names; frozen (no gradients). A folder that SAELens
    itself wrote is read as :func:`sae.formats.read` reads it.

    Raises:
        MissingError: no such folder or file. CorruptError: files that contradict each other, or an unknown
        architecture.
    """
    path = Path(path)
    cfg = read_json(path / CFG)
    if not isinstance(cfg, dict) or not isinstance(cfg.get("metadata", {}), dict):
        raise CorruptError(
            f"{path / CFG} is not the configuration of a dictionary: it must be one JSON object. Restore it from a"
            " copy, or make the dictionary again."
        )
    metadata = dict(cfg.get("metadata", {}))
    if "kind" not in metadata:  # not one of ours: SAELens' own folder may hold scales that ours never do
        from sae.formats import read, to_dictionary

        return to_dictionary(read(path, "saelens"))
    key = str(cfg.get("architecture")), str(metadata.get("kind", "sae"))
    provider = "transcoder" if key[0].endswith("transcoder") else key[1]
    provider = provider if provider in _PROVIDERS else key[0]
    if provider in _PROVIDERS:
        importlib.import_module(_PROVIDERS[provider])
    reader = _READERS.get(key) or (_READERS.get((key[0], "sae")) if key[0] == "topk" else None)
    if reader is None:
        known = ", ".join(f"{a} ({k})" for a, k in sorted(_READERS))
        raise CorruptError(
            f"{path / CFG}: architecture {key[0]!r} of kind {key[1]!r} is not known here. Known: {known}."
        )
    sae = reader(cfg, read_tensors(path / WEIGHTS), str(path))
    sae.metadata = metadata
    return sae.requires_grad_(False).eval()


def cfg_of(sae: Any) -> dict[str, Any]:
    """The content of ``cfg.json`` for a folded dictionary."""
    architecture, own = sae.own_cfg()
    k = {} if "k" in own or not sae.k else {"k": sae.k}  # nominal, where thresholds decide
    return {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        **own,
        "dtype": str(sae.enc_FD.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {**k, **sae.metadata, "kind": sae.kind, "sae_lens_version": SAE_LENS_VERSION},
    }


def tensors_of(sae: Any) -> dict[str, Tensor]:
    """The content of ``sae_weights.safetensors`` for a folded dictionary."""
    named = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec, **sae.extras()}
    return {name: t.detach().cpu().contiguous() for name, t in named.items()}


def _write(folder: Path, sae: Any) -> None:
    from safetensors.torch import save as to_bytes

    write_bytes(folder / WEIGHTS, to_bytes(tensors_of(sae)))
    write_json(folder / CFG, cfg_of(sae))
    compare(sae, load(folder), where=str(folder))


def save(sae: Any, path: str | Path) -> Path:
    """Fold, write, read back and compare. A new folder appears whole; in an existing one the two files are replaced.

    Raises:
        CorruptError: what was read back is not what was written. OutOfSpace: the disk is full; nothing half-written
        stays.
    """
    out = sae.folded()
    compare(sae, out, where="folding")
    return place(Path(path), lambda folder: _write(folder, out))


def place(path: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a folder: a new one appears whole, in an existing one it replaces its files."""
    if path.exists():
        write(path)
    else:
        with new_folder(path) as tmp:
            write(tmp)
    return path


@torch.no_grad()
def compare(a: Any, b: Any, *, where: str, rows: int = 64) -> None:
    """Raise :class:`CorruptError` unless both reconstruct raw rows alike (rows made from ``a``'s own latents), in the
    arithmetic of float32 at least and within the rounding of their weights.
    """
    tolerance = 1e-3
    if a.enc_FD.dtype in (torch.float16, torch.bfloat16):
        tolerance = max(tolerance, 16 * torch.finfo(a.enc_FD.dtype).eps)
        a, b = copy.deepcopy(a).float(), copy.deepcopy(b).float()
    g = torch.Generator().manual_seed(0)
    n = min(a.d_sae, max(1, 2 * a.k))
    latents = torch.randint(0, a.d_sae, (rows, n), generator=g).to(a.enc_FD.device)
    strength = torch.rand(rows, n, generator=g, dtype=torch.float64).to(a.enc_FD)
    x = a.rows_of(strength, latents)
    ya, yb = a(x), b(x)
    worst = (ya - yb).norm(dim=1) / (ya - a.b_dec / a.target_scale).norm(dim=1).clamp_min(1e-30)
    if not bool((worst < tolerance).cpu().double().mean() >= 0.95):  # near-ties may swap a latent in single rows
        raise CorruptError(
            f"{where}: the form that would be saved gives other outputs than the dictionary in memory (relative"
            f" difference {worst.max():.2g}), so nothing was kept. Save it again; if it stays so, check memory"
            " and disk."
        )
