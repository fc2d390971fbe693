"""What things are called in sentences: sites, dictionaries and latents in words instead of ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

SITES = {
    "R": "residual stream",
    "A": "attention output",
    "M": "MLP output",
    "TC": "MLP, input to output",
    "S": "Mamba mixer output",
    "W": "writes into the state",
}
_SITE = re.compile(r"L(\d+)(TC|[RAMSW])")
_ID = re.compile(
    r"(?P<model>.+?)(?:@(?P<revision>[^.]+))?\.(?P<site>L\d+(?:TC|[RAMSW]))-(?P<n>[^.]+)x(?:\.s(?P<seed>\d+))?"
)


def id_parts(id: str) -> dict[str, str]:
    """``model``, ``revision``, ``site``, ``n`` and ``seed`` of a dictionary's id, as far as it has them."""
    found = _ID.fullmatch(id)
    return {k: v for k, v in found.groupdict().items() if v is not None} if found else {}


def model_name(model: str) -> str:
    """A model as one says it: the last part of a path, anything else as it is."""
    return PurePath(model).name or model if model.startswith(("/", "~", "./", "../")) or "\\" in model else model


def listed(names: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last


def place(site: str) -> str:
    """``layer 2, residual stream``; a site of another form stays as it is."""
    found = _SITE.fullmatch(site)
    return f"layer {found[1]}, {SITES[found[2]]}" if found else site


def dictionary_words(id: str, about: Mapping[str, Any] | None = None) -> str:
    """``layer 2 residual stream of mini-pythia``, with its snapshot where it is not the last; the id where that is all
    there is.
    """
    about, parts = about or {}, id_parts(id)
    model = model_name(str(about.get("model") or about.get("model_name") or parts.get("model") or ""))
    site = str(about.get("site") or parts.get("site") or "")
    revision = about.get("revision") or parts.get("revision")
    if not model or not site:
        return id
    where = place(site).replace(", ", " ")
    seed = f", seed {parts['seed']}" if "seed" in parts else ""
    return f"{where} of {model}{f' at {revision}' if revision and revision != 'final' else ''}{seed}"


def latent_words(latent: int, id: str, about: Mapping[str, Any] | None = None) -> str:
    """``latent 345, layer 2 residual stream of mini-pythia``."""
    return f"latent {latent}, {dictionary_words(id, about)}"
