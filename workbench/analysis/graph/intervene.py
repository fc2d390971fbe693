"""Interventions on the nodes of an attribution graph: what the graph predicts, and what the model does.

Nodes are held at values in the model itself: where a dictionary reads, the code of the node's latent at the node's
position is set, and the difference this makes to the reconstruction is added to the activation (Ameisen et al. 2025,
*Circuit Tracing*, validation by perturbation). Everything downstream is computed by the model, not by the graph; with
``freeze`` attention patterns, norm denominators and gates stay at this prompt's values, as the graph assumes.

The graph's own prediction carries the changes along its edges, each of them linear: a latent whose pre-activation moves
by dz changes its activation by dz, and a target moves by (edge / activation of the source) per unit of the source.
Error nodes carry nothing, which is what the prediction can miss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from sae.strict import nearest
from workbench.analysis.graph.trace import Graph, frozen_hooks, holding
from workbench.analysis.splice import splice
from workbench.models.head import norms_edited

MOVED = 10  # next tokens that an intervention reports
ROWS = 32  # variants of a prompt that run together


@dataclass(frozen=True)
class Effect:
    """Of one latent node with an edge into a target logit: what setting it to zero does to that logit (less the mean
    logit of the vocabulary).
    """

    node: str
    target: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class Agreement:
    """Pearson correlation of predicted and measured effects over ``n`` edges, with Fisher's 95 % interval (NaN below
    four edges, or where one side does not vary).
    """

    r: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Intervention:
    """One set of changes: nodes -> activations they were held at, and the next token before and after."""

    changes: dict[str, float]
    tokens: list[int]  # those whose probability moved most, most raised first
    before: list[float]
    after: list[float]
    kl: float  # nats, from before to after
    targets: list[str] = field(default_factory=list)  # nodes of the target logits
    predicted: list[float] = field(default_factory=list)  # change of each target logit less the mean logit
    measured: list[float] = field(default_factory=list)


def parse_changes(
    graph: Graph,
    sets: Sequence[str],
    swaps: Sequence[str] = (),
    groups: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[int, float]:
    """Node number -> the activation it is held at.

    Args:
        sets: ``NODE=0`` (ablate), ``NODE=1.5`` (set), ``NODE=x2`` (scale); several nodes, ``A,B,C=0``, change together.
        swaps: ``A=B``: each takes the other's activation; ``A,B=C,D`` one by one, as many on either side.
        groups: name -> its nodes (a supernode); ``@NAME`` stands for the latents among them, wherever nodes can.

    Raises:
        UsageError: no such node or group, one that is no latent, a value that is no number, a node changed twice, or a
            swap of unequal numbers.
    """
    numbers = {graph.name(i): i for i in range(len(graph.nodes))}
    held: dict[int, float] = {}

    def find(name: str) -> int:
        i = numbers.get(name.strip())
        if i is None or graph.nodes[i].kind != "latent":
            latents = [n for n, j in numbers.items() if graph.nodes[j].kind == "latent"]
            raise UsageError(
                f"{name.strip()!r} is not a node of this graph: no such latent is active on this prompt"
                f" ({nearest(name.strip(), latents)})"
            )
        return i

    def all_of(text: str) -> list[int]:
        found: list[int] = []
        for name in (part.strip() for part in text.split(",")):
            if not name.startswith("@"):
                found.append(find(name))
            elif name[1:] not in groups:
                raise UsageError(f"there is no group {name[1:]!r} on this graph ({nearest(name[1:], list(groups))})")
            else:
                members = [numbers[m] for m in groups[name[1:]] if m in numbers]
                found += [i for i in members if graph.nodes[i].kind == "latent"]
        return found

    def hold(i: int, value: float) -> None:
        if i in held:
            raise UsageError(f"{graph.name(i)} is changed twice. Say one value.")
        held[i] = value

    for text in sets:
        names, sign, value = text.rpartition("=")
        scale = value.strip().startswith("x")
        try:
            number = float(value.strip().removeprefix("x"))
        except ValueError:
            number = math.nan
        if not sign or not math.isfinite(number):
            raise UsageError(f"--set {text!r}: say NODE=0, NODE=1.5 or NODE=x2 (several nodes: A,B=0).")
        for i in all_of(names):
            hold(i, graph.nodes[i].value * number if scale else number)
    for text in swaps:
        a, sign, b = text.partition("=")
        if not sign:
            raise UsageError(f"--swap {text!r}: say two nodes, A=B, or as many on either side, A,B=C,D.")
        one, other = all_of(a), all_of(b)
        if len(one) != len(other):
            raise UsageError(
                f"--swap {text!r}: {len(one)} latents on the left, {len(other)} on the right; they are exchanged one by"
                " one, so name as many on either side."
            )
        for i, j in zip(one, other, strict=True):
            hold(i, graph.nodes[j].value)
            hold(j, graph.nodes[i].value)
    return held


class Bench:
    """A model, its dictionaries and one prompt, ready for interventions.

    Args:
        dictionaries: hook they read -> SAE or transcoder, as the graph was traced with.
        tokens: [1, S].
        freeze: hold what decides where information goes at this prompt's values.

    Raises:
        UsageError: ``freeze``, and the model's mixers cannot be held.
    """

    def __init__(self, model: Any, dictionaries: Mapping[str, Any], tokens: Tensor, *, freeze: bool = True):
        self.model, self.dictionaries, self.tokens = model, dict(dictionaries), tokens.reshape(1, -1)
        names = frozen_hooks(model) if freeze else []
        with torch.no_grad():
            logits, cache = model.run_with_cache(self.tokens, names_filter=names, use_cache=False)
        self.held = {name: cache[name].clone() for name in names if name in cache}
        self.logits = logits[0, -1]

    @torch.no_grad()
    def run(self, graph: Graph, variants: Sequence[Mapping[int, float]]) -> Tensor:
        """Logits [R, V] of the next token, one row for each set of changes (node number -> activation)."""
        return torch.cat([self._some(graph, variants[i : i + ROWS]) for i in range(0, len(variants), ROWS)])

    def _some(self, graph: Graph, variants: Sequence[Mapping[int, float]]) -> Tensor:
        changes: dict[str, list[tuple[int, int, int, float]]] = {}
        for row, held in enumerate(variants):
            for i, value in held.items():
                node = graph.nodes[i]
                changes.setdefault(graph.hooks[node.stage - 1], []).append((row, node.position, node.index, value))

        def edit(codes: Tensor, hook: str) -> Tensor:
            out = codes.clone()
            for row, position, latent, value in changes[hook]:
                out[row, position, latent] = value
            return out

        at = {hook: self.dictionaries[hook] for hook in changes}
        held_here = self.model.hooks(fwd_hooks=holding(self.held))
        with norms_edited(), held_here, splice(self.model, at, edit, keep_error=True):
            return self.model(self.tokens.expand(len(variants), -1), use_cache=False)[:, -1]


def predicted(graph: Graph, held: Mapping[int, float]) -> np.ndarray:
    """[nodes] by how much each node's activation (of a logit: the logit less the mean logit) moves, as the edges say.

    ``graph``: the whole one, before pruning.
    """
    moved = np.zeros(len(graph.nodes))
    values = np.array([n.value if n.kind == "latent" else 0.0 for n in graph.nodes])
    per_unit = np.divide(graph.weights, values, out=np.zeros(graph.weights.shape), where=values > 0)
    stages = np.array([n.stage for n in graph.nodes])
    for stage in range(1, len(graph.hooks) + 2):
        at = np.flatnonzero(stages == stage)
        moved[at] = per_unit[at] @ moved
        for i, value in held.items():
            if stages[i] == stage:
                moved[i] = value - values[i]
    return moved


def intervene(bench: Bench, graph: Graph, held: Mapping[int, float]) -> Intervention:
    """What a set of changes does to the next token, and what the graph says it does."""
    targets = [i for i, n in enumerate(graph.nodes) if n.kind == "logit"]
    after = bench.run(graph, [held])[0]
    was, now = torch.log_softmax(bench.logits.double(), -1), torch.log_softmax(after.double(), -1)
    shift = now.exp() - was.exp()
    top = torch.topk(shift.abs(), min(MOVED, len(shift))).indices
    top = top[torch.argsort(shift[top], descending=True)]
    says = predicted(graph, held)
    return Intervention(
        {graph.name(i): value for i, value in held.items()},
        top.tolist(),
        was[top].exp().tolist(),
        now[top].exp().tolist(),
        float((was.exp() * (was - now)).sum()),
        [graph.name(i) for i in targets],
        [float(says[i]) for i in targets],
        [float(v) for v in _centred(after)[[graph.nodes[i].index for i in targets]] - _targets(bench, graph, targets)],
    )


def _centred(logits: Tensor) -> Tensor:
    return logits.double() - logits.double().mean(-1, keepdim=True)


def _targets(bench: Bench, graph: Graph, targets: Sequence[int]) -> Tensor:
    return _centred(bench.logits)[[graph.nodes[i].index for i in targets]]


def edge_effects(bench: Bench, graph: Graph, among: set[str] | None = None) -> list[Effect]:
    """Predicted and measured effect on its target logit of setting a latent to zero, for every edge from a latent into
    a target.

    Args:
        graph: the whole one. among: names of the nodes that count, such as those that pruning kept; None = all.
    """
    targets = [i for i, n in enumerate(graph.nodes) if n.kind == "logit"]
    sources = [
        i
        for i, n in enumerate(graph.nodes)
        if n.kind == "latent"
        and (among is None or graph.name(i) in among)
        and any(graph.weights[t, i] != 0 for t in targets)
    ]
    if not sources:
        return []
    clean = _targets(bench, graph, targets)
    logits = _centred(bench.run(graph, [{i: 0.0} for i in sources]))
    found = []
    for row, i in enumerate(sources):
        says = predicted(graph, {i: 0.0})
        for clean_value, t in zip(clean.tolist(), targets, strict=True):
            if graph.weights[t, i] != 0:
                did = float(logits[row, graph.nodes[t].index]) - clean_value
                found.append(Effect(graph.name(i), graph.name(t), float(says[t]), did))
    return found


def agreement(effects: Sequence[Effect]) -> Agreement:
    """How well predicted effects follow measured ones."""
    n = len(effects)
    x, y = np.array([e.predicted for e in effects]), np.array([e.measured for e in effects])
    if n < 4 or x.std() == 0 or y.std() == 0:
        return Agreement(math.nan, math.nan, math.nan, n)
    r = float(np.corrcoef(x, y)[0, 1].clip(-1 + 1e-12, 1 - 1e-12))  # at 1 the interval has no width
    z, half = math.atanh(r), 1.959964 / math.sqrt(n - 3)
    return Agreement(r, math.tanh(z - half), math.tanh(z + half), n)
