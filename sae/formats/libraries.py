"""Which library wrote a folder, and who reads it: a folder of another library in, its
:class:`~sae.formats.normal.NormalForm` out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sae.errors import CorruptError
from sae.formats.cross_layer import is_cross_layer
from sae.formats.dictionary_learning import read_dictionary_learning
from sae.formats.normal import NormalForm
from sae.formats.openmoss import read_llama_scope, read_openmoss
from sae.formats.published import (
    goodfire_file,
    layer_file,
    read_circuit_tracer,
    read_gemma_scope,
    read_gemma_scope_2,
    read_goodfire,
)
from sae.formats.saelens import read_saelens
from sae.formats.sparsify import read_sparsify

READERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], NormalForm]]] = {
    "llama-scope": (lambda p: (p / "hyperparams.json").exists(), read_llama_scope),
    "sparsify": (lambda p: (p / "sae.safetensors").exists(), read_sparsify),
    "dictionary-learning": (lambda p: (p / "ae.pt").exists(), read_dictionary_learning),
    "openmoss": (
        lambda p: (
            (p / "config.json").exists() and (p / "sae_weights.safetensors").exists() and not (p / "cfg.json").exists()
        ),
        read_openmoss,
    ),
    "gemma-scope": (lambda p: (p / "params.npz").exists(), read_gemma_scope),
    "gemma-scope-2": (
        lambda p: (p / "params.safetensors").exists() and (p / "config.json").exists(),
        read_gemma_scope_2,
    ),
    "circuit-tracer": (lambda p: layer_file(p) is not None, read_circuit_tracer),
    "goodfire": (lambda p: goodfire_file(p) is not None, read_goodfire),
    "saelens": (lambda p: (p / "cfg.json").exists() and (p / "sae_weights.safetensors").exists(), read_saelens),
}


FILES = {
    "saelens": "cfg.json + sae_weights.safetensors (SAELens)",
    "sparsify": "cfg.json + sae.safetensors (sparsify)",
    "dictionary-learning": "config.json + ae.pt (dictionary_learning)",
    "openmoss": "config.json + sae_weights.safetensors (OpenMOSS)",
    "llama-scope": "hyperparams.json + checkpoints/final.safetensors (Llama Scope)",
    "gemma-scope": "params.npz (Gemma Scope)",
    "gemma-scope-2": "config.json + params.safetensors (Gemma Scope 2)",
    "circuit-tracer": "one layer_<n>.safetensors beside config.yaml (circuit-tracer)",
    "goodfire": "one <model>-SAE-l<layer>.pth (Goodfire)",
}


def detect(folder: str | Path) -> str:
    """Which library wrote a folder, by its file names.

    Raises:
        CorruptError: none of the known ones; the message says what was found and what is expected.
    """
    folder = Path(folder)
    for name, (is_it, _) in READERS.items():
        if is_it(folder):
            return name
    there = (
        ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing" if folder.is_dir() else "no such folder"
    )
    raise CorruptError(
        f"{folder} is not a dictionary of a known library (found: {there}). Expected one of:"
        f" {'; '.join(FILES.values())}."
    )


def read(folder: str | Path, library: str | None = None) -> NormalForm:
    """Read a folder of ``library`` (found by file names where not given) into its normal form.

    Raises:
        MissingError, CorruptError, UntrustedFile: what is wrong with which file.
    """
    folder = Path(folder)
    if is_cross_layer(folder):
        raise CorruptError(
            f"{folder} is a cross-layer transcoder: its latents write at many layers, so it is no dictionary of one"
            " place. `workbench import` takes it apart by layers;"
            f" sae.formats.read_cross_layer({str(folder)!r}) reads it whole."
        )
    library = library or detect(folder)
    try:
        return READERS[library][1](folder)
    except CorruptError as e:
        raise CorruptError(f"{e} (Read as a folder of {library}; if the copy is damaged, fetch it again.)") from e
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as e:  # a foreign file may hold anything anywhere
        if "can't allocate memory" in str(e):
            raise
        what = f"{e} is missing" if isinstance(e, KeyError) else str(e).splitlines()[0]
        raise CorruptError(
            f"{folder} is not a whole {library} dictionary: its configuration or tensors are not what they should be"
            f" ({what}). If the copy is damaged, fetch it again."
        ) from e
