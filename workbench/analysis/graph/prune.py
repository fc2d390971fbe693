"""Pruning of attribution graphs.

Nodes and edges are kept until they hold the asked share of all influence on the target logits (see
:mod:`workbench.analysis.graph.follow`), and what was cut away is reported.
"""

from __future__ import annotations

import numpy as np

from workbench.analysis.graph.follow import MAX_NODES, NODE_SHARE, influence_of, kept_nodes, normalised
from workbench.analysis.graph.trace import Graph


def prune(
    graph: Graph, *, node_share: float = NODE_SHARE, edge_share: float = 0.98, max_nodes: int = MAX_NODES
) -> Graph:
    """Keep the most influential nodes and edges.

    Args:
        node_share: nodes are kept, most influential first, until they hold this share of all influence (logits always
        stay).
        edge_share: the same for edges, each weighted by the influence of its target. max_nodes: a bound for the
        browser.
    """
    influence = _influence(graph)
    total = influence.sum()
    keep = np.zeros(len(graph.nodes), bool)
    keep[kept_nodes(influence, node_share, max_nodes)] = True
    keep |= np.array([node.kind == "logit" for node in graph.nodes])
    where = np.flatnonzero(keep)
    weights = graph.weights[np.ix_(where, where)].copy()
    carried = normalised(weights) * influence[where][:, None]
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


def _influence(graph: Graph) -> np.ndarray:
    """Influence of every node on the logits, these weighted by probability."""
    start = np.array([n.value if n.kind == "logit" else 0.0 for n in graph.nodes], np.float64)
    return influence_of(graph.weights, start, len(graph.hooks))


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
    explained = 1.0 - normalised(graph.weights)[:, kinds == "error"].sum(1)
    influence = np.where(graph.unfollowed, 0.0, influence)  # nothing is known of what makes these
    return {
        "replacement": embedding / (embedding + error) if embedding + error else 0.0,
        "completeness": float(explained @ influence / influence.sum()) if influence.sum() else 0.0,
    }
