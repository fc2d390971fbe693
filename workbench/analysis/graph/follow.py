"""Influence in a graph, and which of its targets are followed further back.

Influence of a node is the sum over all paths to the target logits of products of normalised absolute edge weights.
Edges run to later stages only, so a node's influence is known once the targets of all later stages have been followed:
from the logits back, every target's influence is known before its own edges are asked for. Where following every target
would take long, each stage's most influential are followed until they hold a share of that stage's influence; what is
left out is counted, and no node that pruning keeps is left out (Ameisen et al. 2025, *Circuit Tracing*, follow the most
influential likewise).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

FOLLOW_ALL_FLOPS = 1e12  # following every target may take this much: some ten seconds on two cores
FOLLOW_SHARE = 0.95  # else: of the influence of each stage's targets
NODE_SHARE, MAX_NODES = 0.8, 2000  # what pruning keeps, by default and at most


def normalised(weights: np.ndarray) -> np.ndarray:
    """Absolute weights [targets, sources], each target's summing to one."""
    size = np.abs(weights)
    total = size.sum(1, keepdims=True)
    return np.divide(size, total, out=np.zeros_like(size), where=total > 0)


def influence_of(weights: np.ndarray, start: np.ndarray, n_hooks: int) -> np.ndarray:
    """[nodes] influence on the logits, these weighted by ``start``, their probability; stages are finite, so the sum
    over paths ends.
    """
    normal = normalised(weights)
    total, flow = start.copy(), start
    for _ in range(n_hooks + 1):
        flow = flow @ normal
        total += flow
    return total


def kept_nodes(influence: np.ndarray, node_share: float, max_nodes: int = MAX_NODES) -> np.ndarray:
    """The most influential nodes, most first, until they hold ``node_share`` of all influence."""
    order = np.argsort(-influence, kind="stable")
    total = influence.sum()
    share = np.cumsum(influence[order]) / total if total > 0 else np.ones(len(order))
    return order[: min(max_nodes, int(np.searchsorted(share, node_share) + 1))]


def block_parameters(model: Any, first: int, last: int) -> int:
    """Parameters of the blocks from ``first`` to ``last``, both included."""
    return sum(p.numel() for block in list(model.blocks)[first : last + 1] for p in block.parameters())


def target_flops(parameters: int, n_tokens: int) -> float:
    """Multiply-adds, times two, of the forward and the backward pass of one target through so many parameters."""
    return 6.0 * parameters * n_tokens


def follow(
    weights: np.ndarray,
    stages: np.ndarray,
    targets: np.ndarray,
    start: np.ndarray,
    fill: Callable[[int, Sequence[int]], None],
    *,
    share: float,
    node_share: float,
) -> np.ndarray:
    """Fill ``weights`` from the logits back; bool [nodes]: which targets were followed.

    Args:
        weights: [nodes, nodes], zero; ``fill`` writes into it. stages: [nodes]. targets: bool [nodes], latents and
            logits.
        start: [nodes] probability of logits, else zero. fill: (stage, targets of it) -> writes their edges.
        share: of the influence of each stage's targets, that is followed. node_share: of all influence, whose nodes
            are all followed.
    """
    last = int(stages.max())
    followed = np.zeros(len(stages), bool)
    influence = start.copy()

    def take(stage: int, some: np.ndarray) -> None:
        fill(stage, some.tolist())
        followed[some] = True

    for stage in range(last, 0, -1):
        at = np.flatnonzero(targets & (stages == stage))
        if share < 1 and stage < last and len(at):
            order = at[np.argsort(-influence[at], kind="stable")]
            held = np.cumsum(influence[order])
            at = np.sort(order[: int(np.searchsorted(held, share * held[-1])) + 1])
        take(stage, at)
        influence += influence[at] @ normalised(weights[at])
    while True:
        kept = kept_nodes(influence_of(weights, start, last - 1), node_share)
        missing = kept[targets[kept] & ~followed[kept]]
        if not len(missing):
            return followed
        for stage in np.unique(stages[missing])[::-1]:
            take(int(stage), np.sort(missing[stages[missing] == stage]))
