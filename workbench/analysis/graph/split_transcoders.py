"""Edges of a graph through transcoders taken apart by attention head, or by the channels of a Mamba's state.

Between an MLP's output (or the embedding) and a later transcoder lie one or more layers of attention or a Mamba. With
patterns, norms and gates held the map is linear (but for the SiLU behind a convolution, which enters by its gradient),
every other MLP's output being a source of its own, so for each of these layers an edge is the sum of what goes through
each head or channel and what goes past the layer's mixer (:mod:`workbench.analysis.graph.split`, where the terms are
explained). A layer that the source's output does not enter carries nothing of it and is not listed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.analysis.graph.split import LISTED, Mixer, Split, between, check_gap, listed, made_split
from workbench.analysis.graph.trace import Graph, Node, edges_of, scalar_of
from workbench.analysis.graph.transcoders import Cut, sources_of
from workbench.models.head import norms_edited


def split_transcoder_graph(
    model: Any, transcoders: dict[str, Any], tokens: Tensor, full: Graph, kept: list[str]
) -> Split:
    """Take apart every edge between the kept nodes; no scores by pairs of latents, which enter a head from many layers.

    Args:
        transcoders: hook they read -> transcoder, as the graph was traced with, patterns held. full: the graph before
            pruning. kept: names of the nodes that pruning kept.

    Raises:
        UsageError: a layer's mixer is neither attention nor a Mamba whose parts are shown, or terms do not add up.
    """
    tokens = tokens.reshape(1, -1)
    cut = Cut(model, {hook: transcoders[hook] for hook in full.hooks}, tokens, True)
    nodes, parts = sources_of(cut)
    first_layer = [0, *(int(hook.split(".")[1]) + 1 for hook in full.hooks)]  # the first whose attention reads a stage
    at = [[i for i, n in enumerate(nodes) if n.stage == stage] for stage in range(len(full.hooks) + 1)]
    wanted, names = set(kept), [full.name(i) for i in range(len(full.nodes))]
    edges: list[dict[str, Any]] = []
    loadings: list[dict[str, Any]] = []
    reads: list[dict[str, Any]] = []
    gap = 0.0
    for t, target in enumerate(full.nodes):
        if target.kind not in ("latent", "logit") or names[t] not in wanted or full.unfollowed[t]:
            continue
        last = (
            int(full.hooks[target.stage - 1].split(".")[1]) if target.stage <= len(full.hooks) else model.cfg.n_layers
        )
        for mixer in between(model, 0, min(last, model.cfg.n_layers - 1)):
            layer = mixer.layer
            units, past = _through(cut, target, mixer)
            stages = [s for s in range(target.stage) if first_layer[s] <= layer]
            sources = [i for s in stages for i in at[s]]
            values = np.hstack(
                [
                    np.vstack([np.asarray(edges_of(g[s], at[s], nodes, parts).double()) for g in (units, past)])
                    for s in stages
                ]
            )
            weights = full.weights[t, sources].astype(np.float64)
            gap = max(gap, float(np.abs(values.sum(0) - weights).max()))
            called = mixer.names()
            where = {"target": names[t], "layer": layer}
            for k, i in enumerate(sources):
                if names[i] in wanted and weights[k] != 0:
                    edges += [{"source": names[i], **where, **row} for row in listed(called, values[:, k])]
            loadings += [where | row for row in listed(called, values.sum(1))]
            positions = np.array([nodes[i].position for i in sources])
            for u in np.argsort(-np.abs(values[:-1].sum(1)), kind="stable")[:LISTED]:
                brought = np.bincount(positions, weights=values[u], minlength=tokens.shape[1])
                reads += [
                    where | {"unit": called[u], "position": p, "value": float(v)}
                    for p, v in enumerate(brought)
                    if v != 0
                ]
    return made_split(edges, loadings, reads, [], check_gap(gap, full), 0.0)


def _through(cut: Cut, target: Node, mixer: Mixer) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Stage -> gradients of a target by its sources: [units, S, D] through each unit alone, [1, S, D] past all."""
    read = list(cut.transcoders)[target.stage - 1] if target.stage <= len(cut.transcoders) else None
    dictionary = None if read is None else cut.transcoders[read]
    size, hook = mixer.units, mixer.hook

    def run(copies: int, edit: Any) -> tuple[list[Tensor], Tensor]:
        leaves = [x.expand(copies, -1, -1).clone().requires_grad_(True) for x in cut.sources()]
        with torch.enable_grad():
            seen, logits = cut.run(leaves, more=[(hook, edit)])
            return leaves, scalar_of([target] * copies, None if read is None else seen[read], logits, dictionary)

    kept: dict[str, Tensor] = {}

    def remember(value: Tensor, hook: Any) -> Tensor:
        kept["z"] = value
        return value  # what the hook was shown may be a view that nothing reads unless it is given back

    leaves, scalar = run(size, remember)
    with norms_edited():
        (by_output,) = torch.autograd.grad(scalar, kept["z"], retain_graph=True, allow_unused=True)
        own = torch.zeros_like(kept["z"]) if by_output is None else mixer.own(by_output)  # None: it is not read
        units = torch.autograd.grad(kept["z"], leaves[: target.stage], grad_outputs=own, allow_unused=True)
    leaves, scalar = run(1, lambda value, hook: value.detach())
    past = torch.autograd.grad(scalar, leaves[: target.stage], allow_unused=True)
    return _filled(units, leaves, size), _filled(past, leaves, 1)


def _filled(gradients: tuple[Tensor | None, ...], leaves: list[Tensor], rows: int) -> dict[int, Tensor]:
    """Zeros where nothing leads from a stage to what was differentiated."""
    return {s: torch.zeros(rows, *leaves[s].shape[1:]) if g is None else g.detach() for s, g in enumerate(gradients)}
