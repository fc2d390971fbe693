"""Attention through torch's fused kernel, where nobody looks inside.

TransformerLens' bridge of a rotary Transformer computes scores and pattern one after the other, so that their hooks
can fire. A harvest of the residual stream listens to none of them: scaling, masking, softmax and their copies are then
about 4 % of the forward pass of a Llama of 135 million parameters at 128 tokens, and more at longer contexts. Here
transformers' own module runs instead, with ``scaled_dot_product_attention``. The numbers agree to rounding, not bit
for bit, so this is for harvests, not for a pass that is compared with another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch

from workbench.models.attention import more_than_softmax
from workbench.models.quiet_norms import heard

# How far the two ways may differ: shares of a number itself and of its row's median size, in the precision of both.
# (Of the median: a few numbers of a row may be thousands of times the others, which must be compared all the same.)
_SAME = {torch.float32: (1e-4, 1e-3), torch.float64: (1e-8, 1e-7)}


@contextmanager
def fused_attention(model: Any, names: list[str]) -> Iterator[bool]:
    """While open, every attention layer of a bridge runs transformers' own module with torch's fused kernel.

    Yields whether it does. It does not, and the model stays as it is, where one of the hooks ``names`` or a hook that
    is already registered lies inside an attention layer, or where any layer's attention is of another kind (soft caps,
    sinks, attention that TransformerLens leaves to transformers anyway).
    """
    layers = _layers(model)
    if not layers or any(not _plain(layer) for layer in layers) or _looked_into(model, layers, names):
        yield False
        return
    configs = {id(c): c for layer in layers for c in _configs(layer.original_component.config)}
    configs |= {id(c): c for c in _configs(model.original_model.config)}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    forwards = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:  # nn.Module calls self.forward, so the instance's own wins
            vars(layer)["forward"] = MethodType(_transformers_own, layer)
        for config in configs.values():
            config._attn_implementation_internal = "sdpa"
        yield True
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            del vars(layer)["forward"]
            if forward is not None:
                vars(layer)["forward"] = forward
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def agrees(run: Callable[[], dict[str, torch.Tensor]], model: Any, names: list[str]) -> bool:
    """Whether activations of the hooks ``names`` that ``run`` makes are the same, to rounding, through the fused kernel
    (asked once before it is used: two ways of computing one thing are trusted where they have been seen to agree).
    """
    plain = run()
    with fused_attention(model, names) as fused:
        if not fused:
            return False
        try:
            other = run()
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):
            return False  # transformers' module asks for something else here; the bridge's own pass is right without it
    return all(_close(plain[name], other[name]) for name in plain)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether activations [..., width] are the same to rounding; never in half precision, where that says little."""
    if a.shape != b.shape or a.dtype not in _SAME:
        return False
    own, row = _SAME[a.dtype]
    size = a.abs()
    return bool(((a - b).abs() <= own * size + row * size.median(-1, keepdim=True).values + 1e-9).all())


def _transformers_own(self: Any, *args: Any, **kwargs: Any) -> Any:
    """What stands in for the bridge's ``forward``: its own outer hooks around transformers' module."""
    if "hidden_states" in kwargs:
        hidden_states, rest = kwargs.pop("hidden_states"), args
    else:
        hidden_states, rest = args[0], args[1:]
    made = self.original_component(self.hook_in(hidden_states), *rest, **kwargs)
    if not isinstance(made, tuple):
        raise TypeError(f"{type(self.original_component).__name__} returns {type(made).__name__}, not a tuple")
    return (self.hook_out(made[0]), *made[1:])


def _layers(model: Any) -> list[Any]:
    return [block.attn for block in getattr(model, "blocks", []) if "attn" in block._modules]


def _plain(layer: Any) -> bool:
    """Whether a layer's attention is what the fused kernel computes, and its bridge the one that spells it out."""
    from transformer_lens.model_bridge.generalized_components import PositionEmbeddingsAttentionBridge

    if type(layer) is not PositionEmbeddingsAttentionBridge:
        return False
    module = layer.original_component
    return (
        not layer.is_cross_attention
        and hasattr(getattr(module, "config", None), "_attn_implementation_internal")
        and getattr(module, "attn_logit_softcapping", None) is None
        and not more_than_softmax(module)
    )


def _looked_into(model: Any, layers: list[Any], names: list[str]) -> bool:
    """Whether a wanted hook, or one that is registered already, lies inside an attention layer."""
    from transformer_lens.hook_points import HookPoint

    inside = {
        id(point)
        for layer in layers
        for point in layer.modules()
        if isinstance(point, HookPoint) and point is not layer.hook_in and point is not layer.hook_out
    }
    known = model.hook_dict
    return any(id(known[name]) in inside for name in names if name in known) or any(
        heard(point) for point in known.values() if id(point) in inside
    )


def _configs(config: Any) -> list[Any]:
    """A configuration and the one of its text model, which masks are made by."""
    return [config, config.get_text_config()]
