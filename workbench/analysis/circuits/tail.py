"""Run a bridge from the input of any block to the logits at the last position, for many variants of the same prompts.

A patch in layer l leaves everything before it unchanged, so thousands of patches share one clean run up to there. What
a block receives beside the residual stream (masks, rotary angles) is taken from that clean run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.models.head import finished, head_of, raw_logits

Hook = tuple[str, Callable[..., Any]]


class Tail:
    """The clean run of P prompts, resumable at every block.

    Attributes: `inputs[l]` residual stream entering block l, [P,T,d_model]; `logits` [P,V] at the last position.
    """

    def __init__(self, model: Any, tokens: np.ndarray | Tensor):
        self.model, self.n_layers, self.head = model, len(model.blocks), head_of(model)
        self.tokens = torch.as_tensor(tokens)
        self.inputs: list[Tensor] = []
        self._kwargs: list[dict[str, Any]] = []
        handles = [block.register_forward_pre_hook(self._record, with_kwargs=True) for block in model.blocks]
        try:
            with torch.no_grad():
                self.logits = model(self.tokens, use_cache=False)[:, -1]
        finally:
            for handle in handles:
                handle.remove()
        check = self.run(0, torch.arange(len(self.tokens)))
        if not torch.allclose(check, self.logits, atol=1e-3, rtol=1e-3):
            raise UsageError(
                f"{type(model).__name__} of {model.cfg.architecture} does more than its blocks, final norm and"
                " unembedding."
            )

    def _record(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self.inputs.append(hidden.detach())
        self._kwargs.append(
            {
                k: v
                for k, v in kwargs.items()
                if k != "hidden_states" and (v is None or isinstance(v, (Tensor, tuple, bool)))
            }
        )

    def run(
        self,
        layer: int,
        prompts: Tensor,
        hooks: Sequence[Hook] = (),
        resid: Tensor | None = None,
        *,
        grad: bool = False,
    ) -> Tensor:
        """Logits [R,V] of R rows, row r being a variant of prompt prompts[r], from block `layer` on, under forward
        hooks.

        `resid` [R,T,d_model] replaces the clean input of the block. Hooks and splices that are open already stay; with
        `grad` gradients flow back to what they put in.
        """
        x = self.inputs[layer][prompts] if resid is None else resid
        with torch.set_grad_enabled(grad), self.model.hooks(fwd_hooks=list(hooks)) if hooks else nullcontext():
            for l in range(layer, self.n_layers):
                out = self.model.blocks[l](x, **{k: self._rows(v, prompts) for k, v in self._kwargs[l].items()})
                x = out[0] if isinstance(out, tuple) else out
            return self.to_logits(x[:, -1:])

    def to_logits(self, resid: Tensor) -> Tensor:
        """Final norm and unembedding (and factor, and soft cap) of [R,1,d_model]: logits [R,V]."""
        return finished(raw_logits(self.model, resid), self.head.factor, self.head.cap)[:, 0]

    def _rows(self, value: Any, prompts: Tensor) -> Any:
        if isinstance(value, tuple):
            return tuple(self._rows(v, prompts) for v in value)
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == len(self.tokens) > 1:
            return value[prompts]
        return value
