"""The direct path: a change of one mixer's output reaches the logits while every other layer remembers the clean run.

*Direct* here is Towards Universality's notion (arXiv 2410.06672, section 6; Wang et al. 2022, path patching): attention
heads and recurrent states of all other layers keep their clean values; what acts at one position alone (MLPs, norms,
gates, the current tap of a convolution, B, C and Δ) is recomputed. *Residual* is narrower: nothing but the final norm
is recomputed. Both need only the changed position, so a row costs one token. The *total effect*, in which everything
follows, is in `patching.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.circuits.tail import Hook, Tail, block_calls
from workbench.models.anatomy import anatomy_of

Path = Literal["direct", "residual"]


def check_circuits(model: Any) -> None:
    """Refuse a model whose mixers cannot be analysed.

    Raises:
        UsageError: neither attention nor Mamba-1 throughout, or parts of them are not what the analyses suppose.
    """
    anatomy, name = anatomy_of(model), model.cfg.architecture
    if set(anatomy.kinds) not in ({"attention"}, {"Mamba"}):
        raise UsageError(
            f"circuits are analysed for attention and Mamba-1 mixers, not for {name}: its layers are"
            f" {anatomy.describe()}."
        )
    if why := anatomy.why_not_patched() if is_transformer(model) else anatomy.why_not_held():
        raise UsageError(f"circuits of {name} cannot be analysed ({why}).")


def is_mamba(model: Any) -> bool:
    """Whether every block of a bridge holds a Mamba-1 mixer (or FalconMamba's)."""
    return set(anatomy_of(model).kinds) == {"Mamba"}


def is_transformer(model: Any) -> bool:
    """Whether every block of a bridge holds attention, and no other mixer."""
    return set(anatomy_of(model).kinds) == {"attention"}


def collect(
    model: Any, tokens: np.ndarray, wanted: dict[str, Callable[[Tensor, slice], Tensor]], batch: int = 16
) -> dict[str, Tensor]:
    """Run prompts [P,T] and keep `pick(value, rows)` of every wanted hook, concatenated over prompts: large activations
    are never all held.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for start in range(0, len(tokens), batch):
        rows = slice(start, start + batch)

        def keep(value: Tensor, hook: Any, name: str, rows: slice = rows) -> None:
            kept[name].append(wanted[name](value, rows).clone())

        hooks = [(name, lambda value, hook, name=name, keep=keep: keep(value, hook, name)) for name in wanted]
        with torch.no_grad():
            model.run_with_hooks(torch.as_tensor(tokens[rows]), fwd_hooks=hooks, use_cache=False)
    return {name: torch.cat(values) for name, values in kept.items()}


class FrozenPaths:
    """Direct paths through the clean run of P prompts."""

    def __init__(self, model: Any, tail: Tail):
        self.model, self.tail, self.n_layers = model, tail, tail.n_layers
        self.position = tail.tokens.shape[1] - 1
        self.head_outputs: dict[tuple[bytes, str], list[Tensor]] = {}  # (tokens, position) -> of every layer
        check_circuits(model)
        if is_mamba(model):
            self._memory = collect(model, tail.tokens.numpy(), self._mamba_hooks())
            self._step = self._mamba_step
        else:
            self._written = [layer.written for layer in anatomy_of(model).layers]
            self._memory = collect(model, tail.tokens.numpy(), dict.fromkeys(self._written, lambda v, rows: v))
            self._one_token = block_calls(model, tail.tokens[:, :1])[1]
            self._step = self._transformer_step
        self.final = tail.inputs[-1]
        prompts = torch.arange(len(tail.tokens))
        zero = torch.zeros_like(tail.inputs[0][:, 0])
        with torch.no_grad():
            if not torch.allclose(self.logits(0, zero, prompts), tail.logits, atol=1e-3, rtol=1e-3):
                raise UsageError(
                    f"the blocks of {model.cfg.architecture} are not norm, mixer and MLP as expected here; no direct"
                    " paths."
                )
            self._last_output = self.carry(
                self.n_layers - 1, zero, prompts
            )  # the clean residual stream after the last block

    def logits(self, layer: int, delta: Tensor, prompts: Tensor, path: Path = "direct") -> Tensor:
        """Logits [R,V] when the mixer output of `layer` at the last position changes by delta [R,d_model], for prompts
        [R].
        """
        if path == "residual":
            return self.tail.to_logits((self._last_output[prompts] + delta)[:, None])[:, 0]
        return self.tail.to_logits(self.carry(layer, delta, prompts)[:, None])[:, 0]

    def carry(
        self, layer: int, delta: Tensor, prompts: Tensor, *, at: Tensor | None = None, to: int | None = None
    ) -> Tensor:
        """The residual stream [R,d_model] entering block `to` (by default: leaving the last), at positions `at` [R]
        (last by default).

        Other positions than the last are for Transformers: a Mamba's states are kept at the last position only.
        """
        at = torch.full_like(prompts, self.position) if at is None else at
        x = self._step(layer, self.tail.inputs[layer][prompts, at], prompts, at, delta)
        for l in range(layer + 1, self.n_layers if to is None else to):
            x = self._step(l, x, prompts, at, None)
        return x

    def _transformer_step(self, layer: int, x: Tensor, prompts: Tensor, at: Tensor, delta: Tensor | None) -> Tensor:
        """The block on one position at a time, its heads' outputs together being what they were in the clean run."""
        heads = self._memory[self._written[layer]][prompts, at]
        heads = (heads if delta is None else heads + delta)[:, None]
        return self._one_position(layer, x, prompts, [(self._written[layer], lambda value, hook: heads)])

    def head_inputs(self, layer: int, x: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        """{q, k, v: [R,heads,d_head]} that the attention of a block makes of residual streams x [R,d_model]."""
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Hook:
            return f"blocks.{layer}.attn.hook_{name}", lambda value, hook: seen.update({name: value[:, 0]})

        self._one_position(layer, x, prompts, [keep(name) for name in "qkv"])
        return seen

    def _one_position(self, layer: int, x: Tensor, prompts: Tensor, hooks: list[Hook]) -> Tensor:
        with self.model.hooks(fwd_hooks=hooks):
            out = self.model.blocks[layer](x[:, None], **self.tail.rows_of(self._one_token[layer], prompts))
        return (out[0] if isinstance(out, tuple) else out)[:, 0]

    def _mamba_hooks(self) -> dict[str, Callable[[Tensor, slice], Tensor]]:
        hooks: dict[str, Callable[[Tensor, slice], Tensor]] = {}
        for l in range(self.n_layers):
            hooks[f"blocks.{l}.mixer.hook_h"] = lambda v, rows: v[:, -1]
            hooks[f"blocks.{l}.mixer.conv1d.hook_in"] = self._window
        return hooks

    def _window(self, v: Tensor, _rows: slice) -> Tensor:
        """The convolution inputs [B,D,≤K] that the last position sees."""
        return v[..., max(v.shape[-1] - self._mixer(0).conv_kernel_size, 0) :]

    def _mixer(self, layer: int) -> Any:
        return self.model.blocks[layer].mixer.original_component

    def _mamba_step(self, layer: int, x: Tensor, prompts: Tensor, at: Tensor, delta: Tensor | None) -> Tensor:
        if bool((at != self.position).any()):
            raise UsageError("a Mamba's states are kept at the last position only, so direct paths start there.")
        block, mixer = self.model.blocks[layer], self._mixer(layer)
        current, gate = mixer.in_proj(block.norm(x[:, None]))[:, 0].chunk(2, -1)
        window = torch.cat(
            [self._memory[f"blocks.{layer}.mixer.conv1d.hook_in"][prompts][..., :-1], current[..., None]], -1
        )
        u, C = mixed_input(mixer, convolve(mixer, window))[::3]
        y = torch.einsum("rdn,rn->rd", self._memory[f"blocks.{layer}.mixer.hook_h"][prompts], C)
        out = x + mixer.out_proj(((y + u * mixer.D) * mixer.act(gate))[:, None])[:, 0]
        return out if delta is None else out + delta


def convolve(mixer: Any, window: Tensor) -> Tensor:
    """Convolution output, before SiLU, at the last position of a window [..., D, ≤K] of its inputs."""
    weight = mixer.conv1d.weight[:, 0, -window.shape[-1] :]
    out = (window * weight).sum(-1)
    return out if mixer.conv1d.bias is None else out + mixer.conv1d.bias


def mixed_input(mixer: Any, conv_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, Δ [..., D] and B, C [..., N] of a mixer, from the convolution's output [..., D]."""
    x = mixer.act(conv_out)
    low_rank, B, C = mixer.x_proj(x).split([mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size], -1)
    if hasattr(mixer, "dt_layernorm"):
        low_rank, B, C = mixer.dt_layernorm(low_rank), mixer.b_layernorm(B), mixer.c_layernorm(C)
    return x, torch.nn.functional.softplus(mixer.dt_proj(low_rank)), B, C
