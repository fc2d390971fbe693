"""Edges of a residual-stream graph taken apart: by attention head, or by the channels or heads of a state.

With attention patterns, norms, Δ, B, C and gates held, what lies between two hooks is linear but for MLPs and the SiLU
behind a convolution, which enter by their gradient. So for each layer in between an edge is a sum,

    edge = sum over units of (what goes through the unit) + what goes past the layer's mixer,

a unit being a head (its output, pattern · values), or a channel of a Mamba's state or a head of another (its output,
y_t = sum_s alpha_ts x_s, the layer's hidden attention; Ali et al. 2024, arXiv 2403.01590). Each term is a gradient of
its own: of the target by the unit's output, carried back through this unit alone; and of the target with all units'
outputs held. That the terms add up to the edge is measured, not assumed.

The loading of a unit on a node is the sum of what all sources send to it through the unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.graph.scores import Score, ScoreSplitter
from workbench.analysis.graph.trace import Graph, Node, Runner, clean_run, edges_of, source_nodes
from workbench.models.anatomy import anatomy_of
from workbench.models.head import norms_edited
from workbench.models.recurrent import recurrent_layers

PAST = "past"  # what goes past the mixer of a layer: the residual stream and the MLP
OTHERS = "others"  # the sum of the units that are not listed
LISTED = 12  # units listed per edge and node
SCORE_COLUMNS = ["target", "layer", "unit", "query", "key", "score", "pattern", "query_part", "key_part", "value"]
TOLERANCE = 1e-5  # of the largest edge, or of all pairs of a score together


@dataclass(frozen=True)
class Split:
    """Tables of a graph's split.

    Attributes:
        edges: source, target, layer, unit (``H3``: a head; ``C17``: a channel, ``S2``: a head of a state; :data:`PAST`;
            :data:`OTHERS`), value.
            The values of one edge and layer add up to the edge.
        loadings: target, layer, unit, value; over all sources, kept or not.
        reads: target, layer, unit, position (of the sources), value: where the units with the largest loadings bring it
            from.
        scores: target, layer, unit (a head), query, key (positions), score, pattern, query_part, key_part, value: for
            each node and the head with the largest loading on it, the pairs of parts that make its score at the
            position it brings most from (:mod:`workbench.analysis.graph.scores`). Empty for Mambas.
        gap: largest difference between an edge and its terms, over the largest edge. score_gap: the same of scores.
    """

    edges: pd.DataFrame
    loadings: pd.DataFrame
    reads: pd.DataFrame
    scores: pd.DataFrame
    gap: float
    score_gap: float

    def tables(self) -> dict[str, pd.DataFrame]:
        """By the names of their files."""
        return {"splits": self.edges, "loadings": self.loadings, "reads": self.reads, "scores": self.scores}


def split_graph(model: Any, dictionaries: dict[str, Any], tokens: Tensor, full: Graph, kept: Sequence[str]) -> Split:
    """Take apart every edge between the kept nodes.

    Args:
        dictionaries: residual hook -> SAE, as the graph was traced with, patterns held. full: the graph before pruning.
        kept: names of the nodes that pruning kept.

    Raises:
        UsageError: a layer's mixer is neither attention nor a Mamba whose parts are shown, or terms do not add up.
    """
    tokens = tokens.reshape(1, -1)
    clean = clean_run(model, dictionaries, full.hooks, tokens)
    nodes, parts = source_nodes(clean, dictionaries, full.hooks)
    runner = Runner(model, full.hooks, clean, dictionaries, True)
    at = [[i for i, n in enumerate(nodes) if n.stage == stage] for stage in range(len(full.hooks) + 1)]
    wanted = set(kept)
    edges: list[dict[str, Any]] = []
    loadings: list[dict[str, Any]] = []
    reads: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    gap = score_gap = 0.0
    splitter = _splitter(runner)
    for t, target in enumerate(full.nodes):
        if target.kind not in ("latent", "logit") or full.name(t) not in wanted or full.unfollowed[t]:
            continue
        sources = at[target.stage - 1]
        weights = full.weights[t, sources].astype(np.float64)
        shown = [k for k, i in enumerate(sources) if full.name(i) in wanted and weights[k] != 0]
        positions = np.array([nodes[i].position for i in sources])
        for mixer in mixers(model, full.hooks, target.stage):
            layer = mixer.layer
            units, past = _through(runner, target, mixer)
            values = np.vstack([_edges(units, sources, nodes, parts), _edges(past, sources, nodes, parts)])
            gap = max(gap, float(np.abs(values.sum(0) - weights).max()))
            names = mixer.names()
            for k in shown:
                where = {"source": full.name(sources[k]), "target": full.name(t), "layer": layer}
                edges += [where | row for row in listed(names, values[:, k])]
            where = {"target": full.name(t), "layer": layer}
            loadings += [where | row for row in listed(names, values.sum(1))]
            for u in np.argsort(-np.abs(values[:-1].sum(1)), kind="stable")[:LISTED]:
                by_position = np.bincount(positions, weights=values[u], minlength=tokens.shape[1])
                reads += [
                    where | {"unit": names[u], "position": p, "value": float(v)}
                    for p, v in enumerate(by_position)
                    if v != 0
                ]
            if splitter is None or mixer.letter != "H" or layer != _first_block(full.hooks, target.stage):
                continue
            read = np.stack([np.bincount(positions, weights=v, minlength=tokens.shape[1]) for v in values[:-1]])
            head = int(np.abs(values[:-1].sum(1)).argmax())
            at_key = (target.position, int(np.abs(read[head]).argmax()))
            if at_key[1] > at_key[0] or not read[head].any():
                continue
            there = [{full.name(i): parts[i] for i in sources if nodes[i].position == p} for p in at_key]
            found = splitter.pairs(layer, head, at_key, (there[0], there[1]))
            score_gap = max(score_gap, found.gap)
            scores += [where | {"unit": names[head]} | row for row in _pairs(found, at_key)]
    gap = check_gap(gap, full)
    if score_gap > TOLERANCE:
        raise UsageError(
            f"attention scores of {model.cfg.architecture} are not products of queries and keys (gap {score_gap:.2g}),"
            " so pairs of latents do not add up to them. Draw the graph without --split."
        )
    return made_split(edges, loadings, reads, scores, gap, score_gap)


def check_gap(gap: float, full: Graph) -> float:
    """The largest difference between an edge and its terms, over the largest edge.

    Raises:
        UsageError: it is larger than :data:`TOLERANCE`.
    """
    largest = float(np.abs(full.weights).max()) or 1.0
    if gap > TOLERANCE * largest:
        raise UsageError(
            f"edges of this graph are not the sum of their parts (gap {gap / largest:.2g} of the largest edge):"
            " something beside attention heads and state channels carries information between positions. Draw it"
            " without --split."
        )
    return gap / largest


def made_split(
    edges: list[dict[str, Any]],
    loadings: list[dict[str, Any]],
    reads: list[dict[str, Any]],
    scores: list[dict[str, Any]],
    gap: float,
    score_gap: float,
) -> Split:
    """The tables of :class:`Split` from their rows."""
    columns = ["target", "layer", "unit", "value"]
    return Split(
        pd.DataFrame(edges, columns=["source", *columns]),
        pd.DataFrame(loadings, columns=columns),
        pd.DataFrame(reads, columns=["target", "layer", "unit", "position", "value"]),
        pd.DataFrame(scores, columns=SCORE_COLUMNS),
        gap,
        score_gap,
    )


@dataclass(frozen=True)
class Mixer:
    """What passes between positions in one layer.

    Attributes:
        hook: shows its units' outputs [B, T, …]. letter: H for heads of attention, C for channels of a Mamba's state, S
            for heads of another state. units: how many. axis: of the hook's value, along which they lie.
    """

    layer: int
    hook: str
    letter: str
    units: int
    axis: int = 2

    def names(self) -> list[str]:
        """The units, and what goes past them."""
        return [*(f"{self.letter}{u}" for u in range(self.units)), PAST]

    def own(self, value: Tensor) -> Tensor:
        """Of row u of a value [units, T, …] the part of unit u alone, zeros elsewhere."""
        out, rows = torch.zeros_like(value), torch.arange(self.units)
        out.movedim(self.axis, 1)[rows, rows] = value.movedim(self.axis, 1)[rows, rows]
        return out


def mixers(model: Any, hooks: Sequence[str], stage: int) -> Iterator[Mixer]:
    """The mixers of the layers between a stage and the one before it.

    Raises:
        UsageError: a mixer of another kind.
    """
    first = 0 if stage == 1 else int(hooks[stage - 2].split(".")[1]) + 1
    last = int(hooks[stage - 1].split(".")[1]) if stage <= len(hooks) else len(model.blocks) - 1
    yield from between(model, first, last)


def between(model: Any, first: int, last: int) -> Iterator[Mixer]:
    """The mixers of the layers ``first`` to ``last`` that have one.

    Raises:
        UsageError: a mixer that shows no units, or two in one block.
    """
    states = {layer.index: layer for layer in recurrent_layers(model)}
    for i in range(first, last + 1):
        layer, state = anatomy_of(model).layers[i], states.get(i)
        if layer.kind == "MLP":
            continue
        if layer.kind == "attention" and f"blocks.{i}.attn.hook_z" in model.hook_dict:
            yield Mixer(i, f"blocks.{i}.attn.hook_z", "H", layer.heads)
        elif layer.kind == "Mamba" and state is not None:
            own = f"{state.path}.hook_y" in model.hook_dict  # [B, T, channels]; elsewhere [B, T, 1, channels]
            yield Mixer(i, f"{state.path}.hook_y" if own else state.hook("y"), "C", state.values, 2 if own else 3)
        elif state is not None and layer.kind == state.kind:
            yield Mixer(i, state.hook("y"), "S", state.heads)
        else:
            raise UsageError(
                f"block {i} ({layer.kind}) shows neither attention heads nor channels of a state to split edges by."
                " Draw the graph without --split."
            )


def listed(names: Sequence[str], values: np.ndarray, most: int = LISTED) -> list[dict[str, Any]]:
    """The largest units, always what goes past, and the sum of the rest; in order of size."""
    order = [int(i) for i in np.argsort(-np.abs(values[:-1]), kind="stable") if values[i] != 0]
    rows = [{"unit": names[i], "value": float(values[i])} for i in order[:most]]
    if len(order) > most:
        rows.append({"unit": OTHERS, "value": float(values[order[most:]].sum())})
    return [*rows, {"unit": PAST, "value": float(values[-1])}]


def _splitter(runner: Runner) -> ScoreSplitter | None:
    """What takes scores apart; None where no layer has heads that show their scores, or blocks are not all there is."""
    model, tail = runner.model, runner.tail
    if tail is None or not any(h.endswith("attn.hook_attn_scores") for h in model.hook_dict):
        return None
    scales = [h for h in runner.frozen if h.endswith("hook_scale")]
    with torch.no_grad():
        _, cache = model.run_with_cache(tail.tokens, names_filter=scales, use_cache=False)
    return ScoreSplitter(tail, {h: cache[h].clone() for h in scales})


def _first_block(hooks: Sequence[str], stage: int) -> int:
    """The block that the parts of the stage before enter as they are."""
    return 0 if stage == 1 else int(hooks[stage - 2].split(".")[1]) + 1


def _pairs(found: Score, at: tuple[int, int]) -> list[dict[str, Any]]:
    """The largest pairs of a score, and the sum of the rest."""
    flat = found.value.ravel()
    order = np.argsort(-np.abs(flat), kind="stable")
    about = {"query": at[0], "key": at[1], "score": found.score, "pattern": found.pattern}
    rows = [
        about | {"query_part": found.query[a], "key_part": found.key[b], "value": float(found.value[a, b])}
        for a, b in (divmod(int(i), len(found.key)) for i in order[:LISTED])
    ]
    if len(order) > LISTED:
        rows.append(about | {"query_part": OTHERS, "key_part": OTHERS, "value": float(flat[order[LISTED:]].sum())})
    return rows


def _through(runner: Runner, target: Node, mixer: Mixer) -> tuple[Tensor, Tensor]:
    """(gradients [units, S, D] of a target by the stage before it, through each unit alone; [1, S, D] past all)."""
    seen: dict[str, Tensor] = {}

    def remember(value: Tensor, hook: Any) -> Tensor:
        seen["z"] = value
        return value  # what the hook was shown may be a view that nothing reads unless it is given back

    size, hook = mixer.units, mixer.hook
    leaf, scalar = runner.scalar(target.stage, [target] * size, [(hook, remember)])
    z = seen["z"]
    with norms_edited():
        (by_output,) = torch.autograd.grad(scalar, z, retain_graph=True)
        (units,) = torch.autograd.grad(z, leaf, grad_outputs=mixer.own(by_output))
    leaf, scalar = runner.scalar(target.stage, [target], [(hook, lambda value, hook: value.detach())])
    (past,) = torch.autograd.grad(scalar, leaf)
    return units.detach(), past.detach()


def _edges(gradient: Tensor, sources: list[int], nodes: list[Node], parts: dict[int, Tensor]) -> np.ndarray:
    return np.asarray(edges_of(gradient, sources, nodes, parts).double())
