"""The Mamba's memory as sender: state → logit and y → logit, on the direct path.

Arrays are [P prompts, L layers] effects per metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.analysis.circuits.effects import METRICS
from workbench.analysis.circuits.heads import Effects, measure
from workbench.analysis.circuits.paths import FrozenPaths, Path, collect
from workbench.analysis.circuits.tasks import PromptSet


def mixer_of(model: Any, layer: int) -> Any:
    """The wrapped mixer of a layer, with its weights."""
    return model.blocks[layer].mixer.original_component


def decay_rates(model: Any, layer: int) -> Tensor:
    """A [D,N], negative."""
    return -torch.exp(mixer_of(model, layer).A_log.detach().float())


def y_to_resid(model: Any, layer: int, change: Tensor, gate: Tensor) -> Tensor:
    """What a change of y [..., D] adds to the residual stream [..., d_model], the gate z [..., D] being given."""
    mixer = mixer_of(model, layer)
    return (change * mixer.act(gate)) @ mixer.out_proj.weight.T


def _stack(found: list[Effects], metrics: Sequence[str]) -> Effects:
    return {m: np.stack([f[m] for f in found], 1) for m in metrics}


@torch.no_grad()
def state_to_logit(
    model: Any, prompts: PromptSet, paths: FrozenPaths, *, path: Path = "direct", metrics: Sequence[str] = METRICS
) -> Effects:
    """Replace what one layer's last state remembers by what it remembers in the corrupted run: [P,L].

    h_{T-1} becomes Ā_{T-1} h'_{T-2} + B̄_{T-1} x_{T-1}, with h' corrupted and the last step's own terms clean.
    """
    at = {
        "h": lambda v, rows: v[:, -2],
        "dt": lambda v, rows: v[:, -1],
        "C": lambda v, rows: v[:, -1],
        "gate": lambda v, rows: v[:, -1],
    }
    names = {f"blocks.{l}.mixer.hook_{k}": pick for l in range(len(model.blocks)) for k, pick in at.items()}
    clean = collect(model, prompts.clean, names)
    corrupt = collect(model, prompts.corrupt, {k: v for k, v in names.items() if k.endswith("hook_h")})
    rows = []
    for l in range(len(model.blocks)):
        hook = f"blocks.{l}.mixer.hook_"
        change = torch.exp(clean[hook + "dt"][..., None] * decay_rates(model, l)) * (
            corrupt[hook + "h"] - clean[hook + "h"]
        )
        y = torch.einsum("pdn,pn->pd", change, clean[hook + "C"])
        rows.append((l, y_to_resid(model, l, y, clean[hook + "gate"]), torch.arange(len(prompts))))
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
    """Replace one layer's y at the last position by its value in the source prompts: [P,L].

    Late layers that only pass information on show up here too; `state_to_logit` says where it is remembered.
    """
    names = {
        f"blocks.{l}.mixer.hook_{k}": (lambda v, rows: v[:, -1])
        for l in range(len(model.blocks))
        for k in ("y", "gate")
    }
    clean, new = collect(model, prompts.clean, names), collect(model, getattr(prompts, source), names)
    rows = []
    for l in range(len(model.blocks)):
        hook = f"blocks.{l}.mixer.hook_"
        rows.append(
            (
                l,
                y_to_resid(model, l, new[hook + "y"] - clean[hook + "y"], clean[hook + "gate"]),
                torch.arange(len(prompts)),
            )
        )
    return _stack(measure(paths, prompts, rows, path, metrics), metrics)
