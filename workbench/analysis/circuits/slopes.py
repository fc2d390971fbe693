"""First-order effects along direct paths: what a change of a mixer's output does to the answer, to first order, for all
heads and positions from one backward pass.

As in :mod:`workbench.analysis.circuits.attribution`, they choose what is measured exactly on large models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.analysis.circuits.attribution import CHUNK
from workbench.analysis.circuits.heads import check_inputs, input_rows
from workbench.analysis.circuits.layers import attention_layers
from workbench.analysis.circuits.paths import FrozenPaths
from workbench.analysis.circuits.tasks import PromptSet


def path_slopes(paths: FrozenPaths, prompts: PromptSet) -> list[Tensor]:
    """[P,d_model] of every attention layer: gradient of the logit difference by its heads' outputs at the last
    position, along the direct path.
    """

    def difference(stream: Tensor) -> Tensor:
        return _difference(paths.unembedded(stream), prompts, slice(None))

    return _slopes(paths, attention_layers(paths.model), difference)


def sender_slopes(
    model: Any, prompts: PromptSet, paths: FrozenPaths, receiver: tuple[int, int], *, inputs: str, position: str
) -> list[Tensor]:
    """[P,d_model] of every attention layer before the receiver: gradient of the logit difference by its heads' outputs
    at `position`, as seen by the receiver's inputs alone.
    """
    layer, head = receiver
    at, index = torch.as_tensor(prompts.position(position)), torch.arange(len(prompts))
    check_inputs(model, paths, layer, at)
    unit = input_rows(model, layer, head, inputs)
    by_input = _input_slopes(paths, prompts, layer)
    slopes = {c: by_input[c][index, at, h] for c, h in unit.items()}

    def received(stream: Tensor) -> Tensor:
        made = paths.head_inputs(layer, stream, index, at)
        return torch.stack([(made[c][:, h] * slopes[c]).sum() for c, h in unit.items()]).sum()

    return _slopes(paths, [l for l in attention_layers(model) if l < layer], received, at=at, to=layer)


@torch.no_grad()
def to_first_order(changes: Sequence[Tensor], slopes: Sequence[Tensor]) -> np.ndarray:
    """Effects [P,L,*cells] of changes [P,*cells,d_model] with slopes [P,d_model], layer by layer."""
    found = [
        torch.einsum("pcd,pd->pc", c.flatten(1, -2), s).unflatten(1, c.shape[1:-1]) for c, s in zip(changes, slopes)
    ]
    return torch.stack(found, 1).double().numpy()


def _slopes(
    paths: FrozenPaths,
    layers: Sequence[int],
    scalar: Callable[[Tensor], Tensor],
    *,
    at: Tensor | None = None,
    to: int | None = None,
) -> list[Tensor]:
    """Gradient of a scalar of the stream that arrives, by a change at each layer: one pass, since all are taken where
    nothing changes.
    """
    if not layers:
        return []
    zero = {l: torch.zeros_like(paths.tail.inputs[l][:, 0]).requires_grad_(True) for l in layers}
    with torch.enable_grad():
        index = torch.arange(len(paths.tail.tokens))
        stream = paths.carry(layers[0], zero[layers[0]], index, at=at, to=to, later=zero)
        return list(torch.autograd.grad(scalar(stream), [zero[l] for l in layers]))


def _difference(logits: Tensor, prompts: PromptSet, rows: slice) -> Tensor:
    at = torch.arange(len(logits))
    answer, wrong = torch.as_tensor(prompts.answer)[rows], torch.as_tensor(prompts.wrong)[rows]
    return (logits[at, answer] - logits[at, wrong]).sum()


def _input_slopes(paths: FrozenPaths, prompts: PromptSet, layer: int) -> dict[str, Tensor]:
    """Input q, k, v of a layer -> [P,T,heads,d_head]: gradient of the logit difference by it; `paths` keeps them."""
    key = (layer, prompts.answer.tobytes() + prompts.wrong.tobytes())
    if key in paths.input_slopes:
        return paths.input_slopes[key]
    parts: dict[str, list[Tensor]] = {c: [] for c in "qkv"}
    for start in range(0, len(prompts), CHUNK):
        rows = slice(start, start + CHUNK)
        index = torch.arange(len(prompts))[rows]
        seen: dict[str, Tensor] = {}

        def keep(name: str, seen: dict[str, Tensor] = seen) -> Any:
            def hook(value: Tensor, hook: Any) -> Tensor:
                seen[name] = value
                return value  # what the hook was shown may be a view that nothing reads unless it is given back

            return f"blocks.{layer}.attn.hook_{name}", hook

        resid = paths.tail.inputs[layer][index].clone().requires_grad_(True)
        logits = paths.tail.run(layer, index, [keep(c) for c in parts], resid, grad=True)
        with torch.enable_grad():
            found = torch.autograd.grad(_difference(logits, prompts, rows), [seen[c] for c in parts])
        for c, g in zip(parts, found, strict=True):
            parts[c].append(g)
    paths.input_slopes[key] = {c: torch.cat(g) for c, g in parts.items()}
    return paths.input_slopes[key]
