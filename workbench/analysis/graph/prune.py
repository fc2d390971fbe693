"""Pruning of attribution graphs.

Influence of a node is the sum over all paths to the target logits of products of normalised absolute edge weights;
nodes and edges are kept until they hold the asked share of it, and what was cut away is reported.
"""

from __future__ import annotations

import numpy as np

from workbench.analysis.graph.trace import Graph


def prune(graph: Graph, *, node_share: float = 0.8, edge_share: float = 0.98, max_nodes: int = 2000) -> Graph:
    """Keep the most influential nodes and edges.

    Args:
        node_share: nodes are kept, most influential first, until they hold this share of all influence (logits always
        stay).
        edge_share: the same for edges, each weighted by the influence of its target. max_nodes: a bound for the
        browser.
    """
    influence = _influence(graph)
    order = np.argsort(-influence, kind="stable")
    total = influence.sum()
    share = np.cumsum(influence[order]) / total if total > 0 else np.ones(len(order))
    n = min(max_nodes, int(np.searchsorted(share, node_share) + 1))
    keep = np.zeros(len(graph.nodes), bool)
    keep[order[:n]] = True
    keep |= np.array([node.kind == "logit" for node in graph.nodes])
    where = np.flatnonzero(keep)
    weights = graph.weights[np.ix_(where, where)].copy()
    carried = _normalised(weights) * influence[where][:, None]
    flat = np.sort(carried.ravel())[::-1]
    sums = np.cumsum(flat)
    kept_edges = 1.0
    if sums[-1] > 0:
        cut = flat[min(len(flat) - 1, int(np.searchsorted(sums / sums[-1], edge_share)))]
        weights[carried < cut] = 0
        kept_edges = float(carried[carried >= cut].sum() / sums[-1])
    kept = float(influence[where].sum() / total) if total > 0 else 1.0
    nodes = [graph.nodes[i] for i in where]
    return Graph(nodes, weights, graph.hooks, graph.tokens, graph.logit_share, influence[where], kept, kept_edges)


def _normalised(weights: np.ndarray) -> np.ndarray:
    """Absolute weights, each target's summing to one."""
    size = np.abs(weights)
    total = size.sum(1, keepdims=True)
    return np.divide(size, total, out=np.zeros_like(size), where=total > 0)


def _influence(graph: Graph) -> np.ndarray:
    """Influence of every node on the logits, these weighted by probability; stages are finite, so the sum over paths
    ends.
    """
    normal = _normalised(graph.weights)
    start = np.array([n.value if n.kind == "logit" else 0.0 for n in graph.nodes], np.float64)
    total, flow = start.copy(), start
    for _ in range(len(graph.hooks) + 1):
        flow = flow @ normal
        total += flow
    return total


def scores(graph: Graph) -> dict[str, float]:
    """How much of a whole graph goes through latents, as published for attribution graphs (Ameisen et al. 2025;
    ``compute_graph_scores`` of circuit-tracer).

    Returns:
        ``replacement``: influence of embeddings over that of embeddings and errors, along all paths. ``completeness``:
        share of every node's input that does not come from errors (all of it, where a node has none), weighted by the
        node's influence. Both are low where dictionaries reconstruct badly, whatever pruning keeps.
    """
    influence, kinds = _influence(graph), np.array([n.kind for n in graph.nodes])
    embedding, error = (float(influence[kinds == kind].sum()) for kind in ("embedding", "error"))
    explained = 1.0 - _normalised(graph.weights)[:, kinds == "error"].sum(1)
    return {
        "replacement": embedding / (embedding + error) if embedding + error else 0.0,
        "completeness": float(explained @ influence / influence.sum()) if influence.sum() else 0.0,
    }
