"""Norms that compute their inner hooks' values only where somebody listens.

TransformerLens' norm bridge returns Hugging Face's own result and, beside it, computes what ``hook_scale`` and
``hook_normalized`` show; without a hook there nobody sees it. That is half of a norm's work, and about 2 % of the
forward pass of a Llama of 135 million parameters. The result is the same bit for bit.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch


def quiet_norms(model: Any) -> None:
    """Let every norm of a bridge that returns Hugging Face's own result skip what only its inner hooks would see."""
    from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge

    for module in model.modules():
        if isinstance(module, NormalizationBridge) and module.use_native_layernorm_autograd:
            # nn.Module calls self.forward, so the instance's own wins; a plain assignment would reach the wrapped norm
            vars(module)["forward"] = MethodType(_forward, module)


def heard(hook: Any) -> bool:
    """Whether anything is registered at a hook point, by TransformerLens' ways or by torch's."""
    torchs = (hook._forward_hooks, hook._forward_pre_hooks, hook._backward_hooks, hook._backward_pre_hooks)
    return bool(hook.fwd_hooks or hook.bwd_hooks or any(torchs))


def _forward(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    identity = isinstance(self.original_component, torch.nn.Identity)
    if identity or kwargs or heard(self.hook_scale) or heard(self.hook_normalized):
        return type(self).forward(self, hidden_states, **kwargs)  # type: ignore[no-any-return]
    x = self.hook_in(hidden_states)
    return self.hook_out(self.original_component(x).to(x.dtype))  # type: ignore[no-any-return]
