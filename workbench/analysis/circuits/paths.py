"""The direct path: a change of one mixer's output reaches the logits while every other layer remembers the clean run.

*Direct* here is Towards Universality's notion (arXiv 2410.06672, section 6; Wang et al. 2022, path patching): attention
heads and recurrent states of all other layers keep their clean values; what acts at one position alone (MLPs, norms,
gates, the current tap of a convolution, B, C and Δ) is recomputed. *Residual* is narrower: nothing but the final norm
is recomputed. Both need only the changed position, so a row costs one token. The *total effect*, in which everything
follows, is in `patching.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.circuits.layers import attention_layers, check_circuits, left_out, state_layers
from workbench.analysis.circuits.tail import Hook, Tail, block_calls
from workbench.models.anatomy import anatomy_of
from workbench.models.recurrent import states_of

Path = Literal["direct", "residual"]
_STATE_NUMBERS = 1 << 26  # numbers of states that the rows of one pass may hold together


class _Enough(Exception):
    """Raised inside a forward pass when everything wanted has been seen: neither later layers nor the unembedding."""


def collect(
    model: Any,
    tokens: np.ndarray,
    wanted: dict[str, Callable[[Tensor, slice], Tensor]],
    batch: int = 16,
    edits: Callable[[slice], list[Hook]] = lambda rows: [],
) -> dict[str, Tensor]:
    """Run prompts [P,T] and keep `pick(value, rows)` of every wanted hook, concatenated over prompts: large activations
    are never all held, and nothing runs behind the last of them. `edits` gives the hooks that change such rows.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for start in range(0, len(tokens) if wanted else 0, batch):
        rows, left = slice(start, start + batch), set(wanted)

        def keep(value: Tensor, hook: Any, name: str, rows: slice = rows, left: set[str] = left) -> None:
            kept[name].append(wanted[name](value, rows).clone())
            left.discard(name)
            if not left:
                raise _Enough

        hooks = [(name, lambda value, hook, name=name, keep=keep: keep(value, hook, name)) for name in wanted]
        with torch.no_grad(), suppress(_Enough), model.hooks(fwd_hooks=[*edits(rows), *hooks]):
            model(torch.as_tensor(tokens[rows]), use_cache=False)
    return {name: torch.cat(values) for name, values in kept.items()}


class FrozenPaths:
    """Direct paths through the clean run of P prompts.

    A block is run on one position alone. Its heads' outputs together are what they were; its recurrent mixer finds the
    window of its convolution and the state it left there.
    """

    def __init__(self, model: Any, tail: Tail):
        self.model, self.tail, self.n_layers = model, tail, tail.n_layers
        self.position = tail.tokens.shape[1] - 1
        self.head_outputs: dict[tuple[bytes, str], list[Tensor]] = {}  # (tokens, position) -> of every layer
        self.input_slopes: dict[tuple[int, bytes], dict[str, Tensor]] = {}  # (layer, answers) -> q, k, v [P,T,heads,e]
        check_circuits(model)
        layers = anatomy_of(model).layers
        self._written = {l: layers[l].written for l in attention_layers(model)}
        self._written |= {l: layers[l].sites["A"][1] for l in left_out(model)}
        self._recurrent = {layer.index: layer for layer in state_layers(model)}
        tokens = tail.tokens.numpy()
        self._heads = collect(model, tokens, dict.fromkeys(self._written.values(), lambda v, rows: v))
        convolutions = [layer.hook(n) for layer in self._recurrent.values() for n in ("conv_in", "conv")]
        self._convolution = collect(model, tokens, dict.fromkeys(convolutions, lambda v, rows: v))
        self._remembered: dict[bytes, dict[int, tuple[Tensor, Tensor]]] = {}
        self._one_token = block_calls(model, tail.tokens[:, :1])[1]
        self.final = tail.inputs[-1]
        prompts = torch.arange(len(tail.tokens))
        with torch.no_grad():
            self._last_output = self.carry(self.n_layers - 1, None, prompts)  # of the last block, at the last position
            logits = self.logits(0, None, prompts)
            if not torch.allclose(logits, tail.logits, atol=1e-3, rtol=1e-3):
                raise UsageError(
                    f"the blocks of {model.cfg.architecture} are more than attention, recurrent states and parts that"
                    " act at one position alone (rebuilt from those, their logits differ), so direct paths are not"
                    " defined for this model. Leave the analyses of paths out."
                )

    def logits(self, layer: int, change: Tensor | None, prompts: Tensor, path: Path = "direct") -> Tensor:
        """Logits [R,V] when what the mixer of ``layer`` gives at the last position changes, for prompts [R].

        Args:
            change: [R,d_model] of the mixer's output (of all heads together, through W_O), or [R,H,V] of what a
                recurrent mixer reads from its state (``hook_y``); None changes nothing.
        """
        return self.unembedded(self.stream(layer, change, prompts, path))

    def stream(self, layer: int, change: Tensor | None, prompts: Tensor, path: Path = "direct") -> Tensor:
        """The residual stream [R,d_model] behind the last block that :meth:`logits` unembeds."""
        if path == "residual":
            return self._last_output[prompts] + self.branch_change(layer, change, prompts)
        return self.carry(layer, change, prompts)

    def unembedded(self, stream: Tensor) -> Tensor:
        """Logits [R,V] of the stream behind the last block."""
        return self.tail.to_logits(stream[:, None])[:, 0]

    def carry(
        self,
        layer: int,
        change: Tensor | None,
        prompts: Tensor,
        *,
        at: Tensor | None = None,
        to: int | None = None,
        later: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """The residual stream [R,d_model] entering block `to` (by default: leaving the last), at positions `at` [R]
        (last by default; one and the same for all rows of a prompt). `later` has changes of layers behind the first.
        """
        at = torch.full_like(prompts, self.position) if at is None else at
        x = self._step(layer, self.tail.inputs[layer][prompts, at], prompts, at, change)
        for l in range(layer + 1, self.n_layers if to is None else to):
            x = self._step(l, x, prompts, at, (later or {}).get(l))
        return x

    def branch_change(self, layer: int, change: Tensor | None, prompts: Tensor) -> Tensor:
        """What a change of the mixer (see :meth:`logits`) adds to the residual stream [R,d_model] through its branch
        alone, norms behind it and factors included.
        """
        found = anatomy_of(self.model).layers[layer]
        branches = [found.sites[kind][1] for kind in "AS" if kind in found.sites]
        if change is None or not branches:
            return torch.zeros_like(self.final[prompts, -1])
        once, which = prompts.unique(return_inverse=True)  # what is unchanged is the same for all rows of a prompt
        sums = []
        for rows, value in ((prompts, change), (once, None)):
            at = torch.full_like(rows, self.position)
            sums.append(self._sum_of(branches, layer, self.tail.inputs[layer][rows, at], rows, at, value))
        return (sums[0] - sums[1][which]) * (1.0 if found.factor is None else found.factor)

    def _sum_of(
        self, branches: list[str], layer: int, x: Tensor, prompts: Tensor, at: Tensor, change: Tensor | None
    ) -> Tensor:
        """The branches' outputs at one position, added."""
        seen: dict[str, Tensor] = {}
        keep = [(h, lambda value, hook, h=h: seen.update({h: value[:, 0]})) for h in branches]
        self._step(layer, x, prompts, at, change, keep)
        return sum(seen.values(), torch.zeros_like(x))

    def _step(
        self, layer: int, x: Tensor, prompts: Tensor, at: Tensor, change: Tensor | None, then: list[Hook] | None = None
    ) -> Tensor:
        """A block's output [R,d_model] of one position each."""
        hooks: list[Hook] = []
        read = change is not None and change.dim() == 3
        if layer in self._written:
            heads = self._heads[self._written[layer]][prompts, at]
            heads = (heads if change is None or read else heads + change)[:, None]
            hooks.append((self._written[layer], lambda value, hook: heads))
        if layer in self._recurrent:
            recurrent = self._recurrent[layer]
            before, state = (v[prompts] for v in self._memory(prompts, at)[layer])
            hooks.append((recurrent.hook("conv"), lambda value, hook: value + before[:, None]))
            hooks.append((recurrent.hook("state"), lambda value, hook: state[:, None]))
            if read:
                hooks.append((recurrent.hook("y"), lambda value, hook: value + change[:, None]))  # type: ignore[index]
            elif change is not None and layer not in self._written:
                hooks.append((recurrent.branch, lambda value, hook: value + change[:, None]))
        return self._one_position(layer, x, prompts, at, [*hooks, *(then or [])])

    def _memory(self, prompts: Tensor, at: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Recurrent layer -> (what earlier inputs give the convolution [P,C], state after the write [P,H,K,V]) at the
        position of each prompt; other prompts' are at the last position.
        """
        position = torch.full((len(self.tail.tokens),), self.position)
        position[prompts] = at
        key = position.numpy().tobytes()
        if key not in self._remembered:
            rows, layers = torch.arange(len(position)), list(self._recurrent.values())
            states = states_of(self.model, layers, self.tail.tokens, position[:, None])
            found = {}
            for layer in layers:
                u, out = (self._convolution[layer.hook(n)][rows, position] for n in ("conv_in", "conv"))
                bias = layer.conv_bias
                own = u * layer.taps[:, -1] if bias is None else u * layer.taps[:, -1] + bias
                found[layer.index] = ((out - own).detach(), states[layer.index][:, 0])
            if len(self._remembered) > 1:  # the last position's and one more at a time
                self._remembered.pop(list(self._remembered)[-1])
            self._remembered[key] = found
        return self._remembered[key]

    def rows_at_once(self, most: int) -> int:
        """Rows that one pass may hold: states of a row are held with it."""
        largest = max((layer.heads * layer.keys * layer.values for layer in self._recurrent.values()), default=0)
        return max(1, min(most, _STATE_NUMBERS // largest)) if largest else most

    def head_inputs(self, layer: int, x: Tensor, prompts: Tensor, at: Tensor) -> dict[str, Tensor]:
        """{q, k, v: [R,heads,d_head]} that the attention of a block makes of residual streams x [R,d_model] at
        positions [R].
        """
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Hook:
            return f"blocks.{layer}.attn.hook_{name}", lambda value, hook: seen.update({name: value[:, 0]})

        self._one_position(layer, x, prompts, at, [keep(name) for name in "qkv"])
        return seen

    def _one_position(self, layer: int, x: Tensor, prompts: Tensor, at: Tensor, hooks: list[Hook]) -> Tensor:
        given = self.tail.rows_of(self._one_token[layer], prompts)
        for name, value in self.tail.streams(layer).items():  # Zamba2 gives its blocks the embeddings once more
            given[name] = value[prompts, at][:, None]
        with self.model.hooks(fwd_hooks=hooks):
            out = self.model.blocks[layer](x[:, None], **given)
        return (out[0] if isinstance(out, tuple) else out)[:, 0]
