"""Parts of a block that TransformerLens hides, or names as something else, under the names that they have everywhere.

An attention layer of Nemotron-H is shown as if it were a state space mixer: it becomes ``attn``. A hybrid block of
Zamba2 shows nothing: its mixer becomes ``mixer``, the attention in front of it ``attn``. What is found is told by
the parts that modules have, not by the names of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

_ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
_MIXER = {"in_proj": "in_proj", "conv1d": "conv1d", "out_proj": "out_proj"}


def name_parts(model: Any) -> None:
    """Give the blocks of a bridge the components that TransformerLens leaves out, once."""
    changed = [i for i, block in enumerate(model.blocks) if _name(model, block)]
    if not changed:
        return
    gone = {name for name in model._hook_registry for i in changed if name.startswith(f"blocks.{i}.mixer.")}
    before = set(model._hook_registry) - gone
    for name in gone:
        del model._hook_registry[name]
    model._scan_existing_hooks(model, "")
    driver = model._driver
    if driver.supported_hook_points:
        driver.supported_hook_points = (driver.supported_hook_points - gone) | (set(model._hook_registry) - before)


def _name(model: Any, block: Any) -> bool:
    made = dict(_made(model, block))
    for name, component in made.items():
        _put(model, block, name, component)
    return bool(made)


def _made(model: Any, block: Any) -> Iterator[tuple[str, Any]]:
    """(name, component not yet bound) of the parts of a block that are to be named."""
    from transformer_lens.model_bridge.generalized_components import RMSNormalizationBridge, SSM2MixerBridge

    mixer, whole = block._modules.get("mixer"), block.original_component
    if isinstance(mixer, SSM2MixerBridge) and _has(mixer.original_component, _ATTENTION):
        yield "attn", _attention(model, str(mixer.name))
        return
    if mixer is not None or "attn" in block._modules:
        return
    hidden, shared = getattr(whole, "mamba_decoder", None), getattr(whole, "shared_transformer", None)
    if _has(getattr(hidden, "mamba", None), _MIXER) and _has(getattr(shared, "self_attn", None), _ATTENTION):
        yield "norm", RMSNormalizationBridge(name="mamba_decoder.input_layernorm", config=model.cfg)
        yield "mixer", SSM2MixerBridge(name="mamba_decoder.mamba", config=model.cfg, submodules=_linear(_MIXER))
        yield "attn", _attention(model, "shared_transformer.self_attn")


def _attention(model: Any, path: str) -> Any:
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    return AttentionBridge(path, model.cfg, submodules=_linear(_ATTENTION), maintain_native_attention=True)


def _linear(parts: dict[str, str]) -> dict[str, Any]:
    from transformer_lens.model_bridge.generalized_components import DepthwiseConv1DBridge, LinearBridge

    return {n: (DepthwiseConv1DBridge if n == "conv1d" else LinearBridge)(name=path) for n, path in parts.items()}


def _has(module: Any, parts: dict[str, str]) -> bool:
    return isinstance(module, nn.Module) and all(hasattr(module, name) for name in parts.values())


def _put(model: Any, block: Any, name: str, component: Any) -> None:
    """Bind a component to the module at its path, put it there and under its name in the block."""
    from transformer_lens.model_bridge.component_setup import setup_submodules

    *path, last = component.name.split(".")
    holder = block.original_component
    for part in path:
        holder = getattr(holder, part)
    module = getattr(holder, last)
    module = getattr(module, "original_component", module)  # already behind a component of another name
    component.set_original_component(module)
    setup_submodules(component, model.adapter, module)
    if hasattr(type(component), "setup_hook_compatibility"):
        component.setup_hook_compatibility()
    setattr(holder, last, component)
    if name == "attn" and block._modules.pop("mixer" if component.name == "mixer" else "", None) is not None:
        block.submodules = {n: part for n, part in block.submodules.items() if n != "mixer"}
        block.real_components = {n: part for n, part in block.real_components.items() if n != "mixer"}
        ends = {f"hook_{n}_{end}": f"attn.hook_{end}" for n in ("mixer", "attn") for end in ("in", "out")}
        block.hook_aliases = {n: at for n, at in block.hook_aliases.items() if not str(at).startswith("mixer.")} | ends
    block.submodules = {**block.submodules, name: component}
    block.real_components = {**block.real_components, name: (component.name, component)}
    block.add_module(name, component)
