"""A recurrent layer's memory as sender: state → logit and y → logit, on the direct path.

Arrays are [P prompts, L recurrent layers] effects per metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.analysis.circuits.effects import METRICS
from workbench.analysis.circuits.heads import Effects, measure
from workbench.analysis.circuits.layer_runs import layer_runs
from workbench.analysis.circuits.layers import state_layers
from workbench.analysis.circuits.paths import FrozenPaths, Path, collect
from workbench.analysis.circuits.tasks import PromptSet
from workbench.models.recurrent.algebra import decays, states_after, transition


def mixer_of(model: Any, layer: int) -> Any:
    """The wrapped mixer of a recurrent layer, with its weights."""
    return next(found for found in state_layers(model) if found.index == layer).component.original_component


def _stack(found: list[Effects], metrics: Sequence[str]) -> Effects:
    return {m: np.stack([f[m] for f in found], 1) for m in metrics}


@torch.no_grad()
def state_to_logit(
    model: Any, prompts: PromptSet, paths: FrozenPaths, *, path: Path = "direct", metrics: Sequence[str] = METRICS
) -> Effects:
    """Replace what one layer's last state remembers by what it remembers in the corrupted run: [P,L].

    The state before the last position is the corrupted run's; decay, erasure, write and read at the last position are
    the clean run's.
    """
    length, rows = prompts.clean.shape[1], []
    for clean, corrupt in zip(layer_runs(model, prompts.clean), layer_runs(model, prompts.corrupt), strict=True):
        parts: list[Tensor] = []
        for some in clean.batches():
            f, other = clean.factors(some), corrupt.factors(some)
            before = torch.full((len(f.read), 1), length - 2)
            change = (states_after(other, before) - states_after(f, before))[:, 0]
            kept = transition(f, change, length - 1, decays(f))
            parts.append(torch.einsum("phk,phkv->phv", f.read[:, -1], kept))
        rows.append((clean.layer.index, torch.cat(parts), torch.arange(len(prompts))))
    return _stack(measure(paths, prompts, rows, path, metrics), metrics)


@torch.no_grad()
def y_to_logit(
    model: Any,
    prompts: PromptSet,
    paths: FrozenPaths,
    *,
    source: str = "control",
    path: Path = "direct",
    metrics: Sequence[str] = METRICS,
) -> Effects:
    """Replace what one layer reads from its state at the last position by its value in the source prompts: [P,L].

    Late layers that only pass information on show up here too; `state_to_logit` says where it is remembered.
    """
    layers = state_layers(model)
    names = {layer.hook("y"): lambda v, rows: v[:, -1] for layer in layers}
    clean, new = collect(model, prompts.clean, names), collect(model, getattr(prompts, source), names)
    rows = [(y.index, new[y.hook("y")] - clean[y.hook("y")], torch.arange(len(prompts))) for y in layers]
    return _stack(measure(paths, prompts, rows, path, metrics), metrics)
