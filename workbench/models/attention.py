"""Attention that TransformerLens lets transformers compute, with scores and pattern in the open: the hooks
``attn.hook_attn_scores`` and ``attn.hook_pattern`` then show what is computed, and an edit goes on from there.

Transformers' modules hand queries, keys and values to a function that is looked up by a name in their configuration.
Such a module gets a configuration of its own that names the function here; everything before and after it (projections,
norms, rotation, caches, gates, masks) stays transformers' own.
"""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from workbench.models.few_logits import few_logits, same_logits

IMPLEMENTATION = "workbench_shown"  # the name in a module's configuration
_SHOWN_BY = "_workbench_shown_by"  # where a module keeps the component whose hooks fire
_SAME = 1e-4  # share of the largest logit by which the logits may differ


def shown_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention of q [B,H,T,d] over k, v [B,KV,S,d]: ([B,T,H,d], None), as transformers asks for it.

    No pattern is returned: TransformerLens would fire its hook a second time.
    """
    component = getattr(module, _SHOWN_BY)()
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    scores = component.hook_attn_scores(scores)
    pattern = component.hook_pattern(scores.softmax(-1, dtype=torch.float32).to(query.dtype))
    pattern = nn.functional.dropout(pattern, p=dropout, training=module.training)
    return (pattern @ value).transpose(1, 2).contiguous(), None


def attach(model: Any) -> None:
    """Show the attention of every block of a bridge that delegates it to transformers, once; a model whose logits
    would change stays as it is.
    """
    from transformer_lens.model_bridge.generalized_components import AttentionBridge
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, shown_attention)
    components = [block._modules.get("attn") for block in model.blocks]
    changed: list[tuple[Any, Any]] = []  # modules and their configurations before
    before = None
    for component in components:
        if type(component) is not AttentionBridge or component.is_cross_attention:
            continue
        module: Any = component.original_component
        config: Any = getattr(module, "config", None)
        if (
            not hasattr(config, "_attn_implementation_internal")
            or hasattr(module, _SHOWN_BY)
            or more_than_softmax(module)
        ):
            continue
        before = few_logits(model) if before is None else before
        own = copy.copy(config)
        own._attn_implementation_internal = IMPLEMENTATION  # its sub-configurations are shared and stay
        vars(module)[_SHOWN_BY] = weakref.ref(component)
        module.config = own
        changed.append((module, config))
    if before is None or same_logits(before, few_logits(model), share=_SAME):
        return
    for module, config in changed:
        module.config = config
        del vars(module)[_SHOWN_BY]


def more_than_softmax(module: Any) -> bool:
    """Whether a module's attention is more than a softmax over keys."""
    return any(getattr(module, name, None) is not None for name in ("sinks", "rel_pos", "relative_attention_bias"))
