"""The Hugging Face hub, as far as this program asks it: not at all unless ``HF_HUB_OFFLINE=0`` is set."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from sae.files import read_json
from workbench.config import data_dir


def offline() -> bool:
    """Whether the hub may not be asked (the default)."""
    return os.environ.setdefault("HF_HUB_OFFLINE", "1").lower() not in ("0", "false", "no", "")


@cache
def known_hub_models() -> dict[str, dict[str, Any]]:
    """The bundled table: hub name -> source, parameters, weights_gb, gated, config."""
    return read_json(data_dir() / "hub_models.json")


def fetch_command(name: str, revision: str | None = None, *, dataset: bool = False) -> str:
    """The command that fetches a hub repository into the local cache, once."""
    kind = " --repo-type dataset" if dataset else ""
    at = f" --revision {revision}" if revision else ""
    login = "hf auth login && " if known_hub_models().get(name, {}).get("gated") else ""
    return f"{login}HF_HUB_OFFLINE=0 hf download {name}{kind}{at}"
