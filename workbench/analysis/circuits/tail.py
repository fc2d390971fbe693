"""Run a bridge from the input of any block to the logits at the last position, for many variants of the same prompts.

A patch in layer l leaves everything before it unchanged, so thousands of patches share one clean run up to there. What
a block receives beside the residual stream (masks, rotary angles) is taken from that clean run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.circuits.effects import Answers
from workbench.analysis.circuits.tasks import PromptSet
from workbench.models.head import finished, head_of, raw_logits

Hook = tuple[str, Callable[..., Any]]
CHECKED = (
    4  # prompts that are run once more: whether blocks, norm and unembedding are all there is does not depend on one
)
TOKENS = 4096  # rows times positions that one pass holds: more at once are not faster, and take memory


class Tail:
    """The clean run of P prompts, resumable at every block.

    Attributes: `inputs[l]` residual stream entering block l, [P,T,d_model]; `logits` [P,V] at the last position.

    Args:
        check: run all blocks of a few prompts once more, to see that nothing but blocks, norm and unembedding makes
            the logits; not where another set of prompts was checked on the same model.
    """

    def __init__(self, model: Any, tokens: np.ndarray | Tensor, *, check: bool = True):
        self.model, self.n_layers, self.head = model, len(model.blocks), head_of(model)
        self.tokens = torch.as_tensor(tokens)
        self.inputs, self._kwargs, self.logits = block_calls(model, self.tokens)
        few = torch.arange(min(CHECKED, len(self.tokens)))
        if check and not torch.allclose(self.run(0, few), self.logits[few], atol=1e-3, rtol=1e-3):
            raise UsageError(
                f"{type(model).__name__} of {model.cfg.architecture} cannot be followed from block to block: blocks,"
                " final norm and unembedding (lm_head) alone give other logits than the model. Choose another model."
            )

    def run(
        self,
        layer: int,
        prompts: Tensor,
        hooks: Sequence[Hook] = (),
        resid: Tensor | None = None,
        *,
        grad: bool = False,
        every: bool = False,
    ) -> Tensor:
        """Logits [R,V] of R rows, row r being a variant of prompt prompts[r], from block `layer` on, under forward
        hooks.

        `resid` [R,T,d_model] replaces the clean input of the block. Hooks and splices that are open already stay; with
        `grad` gradients flow back to what they put in. With `every` logits [R,T,V] of all positions come back.
        """
        with torch.set_grad_enabled(grad), self.model.hooks(fwd_hooks=list(hooks)) if hooks else nullcontext():
            x = self._blocks(layer, prompts, resid)
            return self.to_logits(x) if every else self.to_logits(x[:, -1:])[:, 0]

    def answers(self, prompts: PromptSet, metrics: Sequence[str]) -> Answers:
        """What variants of these prompts are measured against."""
        return Answers(torch.as_tensor(prompts.answer), torch.as_tensor(prompts.wrong), self.logits, metrics)

    @torch.no_grad()
    def stream(self, layer: int, prompts: Tensor, hooks: Sequence[Hook] = ()) -> Tensor:
        """The residual stream [R,T,d_model] that leaves the last block, as :meth:`run` makes it."""
        with self.model.hooks(fwd_hooks=list(hooks)) if hooks else nullcontext():
            return self._blocks(layer, prompts, None)

    def _blocks(self, layer: int, prompts: Tensor, resid: Tensor | None) -> Tensor:
        x = self.inputs[layer][prompts] if resid is None else resid
        for l in range(layer, self.n_layers):
            out = self.model.blocks[l](x, **self.rows_of(self._kwargs[l], prompts))
            x = out[0] if isinstance(out, tuple) else out
        return x

    def block(self, layer: int, hooks: Sequence[Hook]) -> None:
        """One block on the clean stream of all prompts, under hooks that read; no other block runs."""
        with torch.no_grad(), self.model.hooks(fwd_hooks=list(hooks)):
            self.model.blocks[layer](self.inputs[layer], **self._kwargs[layer])

    def to_logits(self, resid: Tensor) -> Tensor:
        """Final norm and unembedding (and factor, and soft cap) of [R,T,d_model]: logits [R,T,V]."""
        return finished(raw_logits(self.model, resid), self.head.factor, self.head.cap)

    def streams(self, layer: int) -> dict[str, Tensor]:
        """What a block is given beside its input that is a residual stream itself, [P,T,d_model]."""
        shape = self.inputs[layer].shape
        return {k: v for k, v in self._kwargs[layer].items() if isinstance(v, Tensor) and v.shape == shape}

    def rows_of(self, value: Any, prompts: Tensor) -> Any:
        """What a block got beside the residual stream, for chosen prompts."""
        if isinstance(value, dict):
            heads = value.get("alibi")  # [P·H,1,T], prompt by prompt: its rows are no prompts
            rows = {k: self.rows_of(v, prompts) for k, v in value.items()}
            if isinstance(heads, Tensor) and heads.shape[0] % len(self.tokens) == 0 and heads.shape[0] > 1:
                rows["alibi"] = heads.unflatten(0, (len(self.tokens), -1))[prompts].flatten(0, 1)
            return rows
        if isinstance(value, tuple):
            return tuple(self.rows_of(v, prompts) for v in value)
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == len(self.tokens):
            return value[prompts]
        return value


def _named(block: Any) -> list[str]:
    """The parameters of a block's own forward pass, in order."""
    return list(inspect.signature(getattr(block, "original_component", block).forward).parameters)


@torch.no_grad()
def block_calls(model: Any, tokens: Tensor) -> tuple[list[Tensor], list[dict[str, Any]], Tensor]:
    """(residual stream [P,T,d_model] entering each block, what else each is given, logits [P,V] at the last position)
    of one forward pass.
    """
    inputs: list[Tensor] = []
    others: list[dict[str, Any]] = []

    def record(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append((args[0] if args else kwargs["hidden_states"]).detach())
        kwargs = dict(zip(_named(block)[1:], args[1:])) | kwargs  # Zamba2 hands its blocks more by place
        plain = {k: v for k, v in kwargs.items() if v is None or isinstance(v, (Tensor, tuple, int))}
        others.append({k: v for k, v in plain.items() if k != "hidden_states"})

    handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in model.blocks]
    try:
        logits = last_logits(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, others, logits


def last_logits(model: Any, tokens: Tensor) -> Tensor:
    """Logits [P,V] of a whole forward pass at the last position; no other position is unembedded."""

    def last(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, -1:], *args[1:]) if args else args

    unembed = getattr(model, "unembed", None)
    handle = None if unembed is None else unembed.register_forward_pre_hook(last)
    try:
        return model(tokens, use_cache=False)[:, -1]
    finally:
        if handle is not None:
            handle.remove()
