"""What a model is called by the kinds of its layers, from its configuration alone: no weights are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae.errors import UserError
from sae.files import read_json
from workbench.config import cache_dir, data_dir
from workbench.hub import known_hub_models

UNKNOWN = "other"  # said where no record tells the kinds of layer
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAMBA = {"mamba": "Mamba", "falcon_mamba": "Mamba", "mamba2": "Mamba-2"}
_RECURRENT = ("state_size", "mamba_d_state", "ssm_state_size", "mamba_d_ssm", "linear_num_value_heads", "lru_width")
_LISTS = ("layer_types", "layers_block_type", "hybrid_override_pattern", "attn_layer_indices", "full_attn_idxs")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")


def family(config: Mapping[str, Any]) -> str:
    """``Transformer``, ``Mamba``, ``Mamba-2``, ``hybrid``, or :data:`UNKNOWN`, from a Hugging Face ``config.json``.

    A Transformer has attention heads and neither a recurrent state nor a layer of another kind; a hybrid has both.
    """
    if isinstance(config.get("text_config"), dict):
        config = config["text_config"]
    name = str(config.get("model_type") or "")
    if name in _MAMBA:
        return _MAMBA[name]
    layers = next((config[k] for k in _LISTS if config.get(k)), None)
    kinds = {str(k) for k in layers} if isinstance(layers, list | str) else set()
    mixed = any("attention" not in k or "linear" in k for k in kinds)
    attends = any(config.get(k) for k in _HEADS)
    if attends and (mixed or any(config.get(k) for k in _RECURRENT)):
        return "hybrid"
    return "Transformer" if attends else UNKNOWN


def family_of(folder: Path | None, about: Mapping[str, Any], name: str) -> str:
    """The same for a model of a workspace.

    The first configuration that tells it counts: the workspace's own (``folder``, ``models/<id>``; None where it has
    none), that of a bundled model of the id ``name``, that of a converted package, the table of hub models. Then what
    the metadata (``about``) says.
    """
    bundled = str(about.get("bundled") or name)
    places = [folder] if folder is not None else []
    if _NAME.fullmatch(bundled):
        places.append(data_dir() / "models" / bundled)
    if _NAME.fullmatch(name):
        places += sorted((cache_dir() / "models").glob(f"{name}-{'[0-9a-f]' * 16}"))
    configs = [known_hub_models().get(name, {}).get("config")]
    for place in reversed(places):
        try:
            configs.insert(0, read_json(place / "config.json"))
        except (UserError, OSError):
            continue
    told = (family(c) for c in configs if isinstance(c, dict))
    found = next((f for f in told if f != UNKNOWN), None)
    said = str(about.get("architecture") or about.get("model_type") or "")
    return found or str(about.get("family") or {**_MAMBA, "gpt_neox": "Transformer"}.get(said, UNKNOWN))
