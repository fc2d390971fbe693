"""Attribution graph of a prompt: which latents make which latents, and which make the next token.

At every dictionary's hook the residual stream is written as its parts, ``x = sum_i f_i d_i + b + error``, and cut: the
blocks after it see these parts as their input. An edge from part i at one hook to latent j at the next is

    f_i <d_i, dz_j/dx>        z_j = pre-activation of latent j (before its threshold)

the direct effect, by the gradient of the blocks between (attribution = activation × gradient; Marks et al. 2024, arXiv
2403.19647; Ameisen et al. 2025, *Circuit Tracing*). With ``freeze`` the nonlinearities that decide *where* information
goes are held at their values on this prompt: attention patterns and norm denominators in a Transformer; Δ (and with it
the decay), B, C and gate in a Mamba. What remains nonlinear (MLPs, the SiLU after a convolution) enters by its
gradient. Reconstruction errors are nodes of their own.

Graphs through transcoders: :mod:`workbench.analysis.graph.transcoders`; pruning: :mod:`workbench.analysis.graph.prune`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import ConfigError, UsageError, UserError
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.graph.follow import (
    FOLLOW_ALL_FLOPS,
    FOLLOW_SHARE,
    NODE_SHARE,
    block_parameters,
    follow,
    target_flops,
)
from workbench.models.anatomy import anatomy_of
from workbench.models.head import norms_edited


@dataclass(frozen=True)
class Node:
    """One node. ``kind``: embedding, latent, error or logit. ``stage`` 0 = embedding, then one per hook, then the
    logits.

    ``index``: latent number, token id of a logit, else -1. ``value``: activation, or probability of a logit.
    """

    kind: str
    stage: int
    position: int
    index: int = -1
    value: float = 0.0


@dataclass
class Graph:
    """Nodes, and ``weights[target, source]`` between them (zero where there is no edge).

    ``totals``, where edges are shares (frozen, a transcoder for every MLP): what each target is, a pre-activation or a
    logit less the mean logit; ``constants``: the share of all biases in it.
    """

    nodes: list[Node]
    weights: np.ndarray
    hooks: list[str]
    tokens: list[int]
    logit_share: float
    influence: np.ndarray = field(default_factory=lambda: np.zeros(0))
    kept_nodes: float = 1.0
    kept_edges: float = 1.0
    constants: np.ndarray = field(default_factory=lambda: np.zeros(0))
    totals: np.ndarray = field(default_factory=lambda: np.zeros(0))
    unfollowed: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        """By default every target is followed."""
        if not len(self.unfollowed):
            self.unfollowed = np.zeros(len(self.nodes), bool)

    @property
    def layers(self) -> list[int]:
        """The layer each stage belongs to: -1 for embeddings, one past the last for logits."""
        at = [int(hook.split(".")[1]) for hook in self.hooks]
        return [-1, *at, at[-1] + 1]

    def name(self, i: int) -> str:
        """What node ``i`` is called in ``graph.json`` (see :func:`node_id`)."""
        return node_id(self.nodes[i], self.layers)

    @property
    def largest_gap(self) -> float | None:
        """Largest difference between a target and the sum of what makes it, over the largest target; None where edges
        are no shares.
        """
        if not len(self.totals):
            return None
        at = [i for i, n in enumerate(self.nodes) if n.kind in ("latent", "logit") and not self.unfollowed[i]]
        gap = np.abs(self.weights[at].sum(1, dtype=np.float64) + self.constants[at] - self.totals[at])
        return float(gap.max() / max(float(np.abs(self.totals[at]).max()), 1e-30))


def node_id(node: Node, layers: list[int]) -> str:
    """``<layer>_<latent>_<position>``, ``E_<position>`` for embeddings, ``<layer>_err_<position>`` for errors; a target
    is ``<layer past the last>_<token id>_<position>``.
    """
    if node.kind == "embedding":
        return f"E_{node.position}"
    return f"{layers[node.stage]}_{'err' if node.kind == 'error' else node.index}_{node.position}"


def trace(
    model: Any,
    dictionaries: dict[str, Any],
    tokens: Tensor,
    *,
    logit_share: float = 0.95,
    max_logits: int = 10,
    freeze: bool = True,
    batch: int = 32,
    node_share: float = NODE_SHARE,
    follow_share: float | None = None,
) -> Graph:
    """The full graph of one prompt.

    Args:
        model: a TransformerBridge. dictionaries: residual hook name -> dictionary, one per layer, any order.
        tokens: [1, S] or [S]. logit_share: targets are the likeliest next tokens until they hold this probability.
        batch: targets per backward pass. node_share: what pruning will keep; those nodes are all followed.
        follow_share: share of each stage's influence whose targets are followed; None: all of them where that is quick.

    Raises:
        UsageError: no dictionary, an unknown hook, or a hook that is not a residual stream. ConfigError: a width that
        does not fit.
    """
    tokens = tokens.reshape(1, -1)
    hooks = sorted(dictionaries, key=_layer_of)
    if not hooks:
        raise UsageError(
            "a graph needs at least one dictionary on the residual stream (a site such as L2R). Train one: `workbench"
            " train`."
        )
    for hook in hooks:
        if hook not in model.hook_dict:
            raise UsageError(
                f"the model has no hook {hook!r}. The dictionary is of another model, or names a wrong hook."
            )
    clean = clean_run(model, dictionaries, hooks, tokens)
    nodes, parts = source_nodes(clean, dictionaries, hooks)
    runner = Runner(model, hooks, clean, dictionaries, freeze)
    return connected(
        nodes,
        parts,
        clean["logits"][0, -1],
        hooks,
        tokens,
        lambda stage, some: {stage - 1: runner.gradients(stage, some)},
        lambda stage: target_flops(runner.parameters(stage), tokens.shape[1]),
        logit_share=logit_share,
        max_logits=max_logits,
        batch=batch,
        node_share=node_share,
        follow_share=follow_share,
    )


def frozen_hooks(model: Any) -> list[str]:
    """The hooks that hold what decides where information goes.

    Raises:
        UsageError: holding them does not make the model's mixers linear; the message says why.
    """
    anatomy = anatomy_of(model)
    if why := anatomy.why_not_held():
        raise UsageError(
            f"attention patterns and gates of {model.cfg.architecture} cannot be held ({why}). Draw the graph without"
            " holding them: --no-freeze."
        )
    return anatomy.frozen()


def holding(held: Mapping[str, Tensor]) -> list[tuple[str, Callable[..., Tensor]]]:
    """Forward hooks that put the values of one prompt in place for all rows of a batch, whether rows are an axis of
    their own or laid end to end.
    """
    return [
        (name, lambda value, hook, one=one: one.repeat(len(value) // len(one), *[1] * (one.dim() - 1)))
        for name, one in held.items()
    ]


def connected(
    nodes: list[Node],
    parts: dict[int, Tensor],
    logits: Tensor,
    hooks: list[str],
    tokens: Tensor,
    gradients: Callable[[int, list[Node]], Mapping[int, Tensor]],
    flops: Callable[[int], float],
    *,
    logit_share: float,
    max_logits: int,
    batch: int,
    node_share: float,
    follow_share: float | None,
) -> Graph:
    """The graph of given nodes and the vectors they add, with the likeliest next tokens as targets.

    Args:
        logits: [V] of the next token. hooks: one per stage between embedding and logits.
        gradients: (stage, targets of it) -> earlier stage: [targets, S, D], for the stages that have edges to it.
        flops: stage -> what one target of it takes. node_share, follow_share: see :func:`trace`.
    """
    targets, share = logit_targets(logits, logit_share, max_logits)
    p, last = logits.softmax(-1), len(hooks) + 1
    nodes = nodes + [Node("logit", last, tokens.shape[1] - 1, t, float(p[t])) for t in targets]
    at = [[i for i, n in enumerate(nodes) if n.stage == stage] for stage in range(last + 1)]
    wanted = np.array([n.kind in ("latent", "logit") for n in nodes])
    stages = np.array([n.stage for n in nodes])
    weights = np.zeros((len(nodes), len(nodes)), np.float32)

    def fill(stage: int, targets: Sequence[int]) -> None:
        for start in range(0, len(targets), batch):
            some = targets[start : start + batch]
            for before, gradient in gradients(stage, [nodes[i] for i in some]).items():
                weights[np.ix_(some, at[before])] = edges_of(gradient, at[before], nodes, parts).numpy()

    if follow_share is None:
        every = sum(flops(stage) * int(wanted[at[stage]].sum()) for stage in range(1, last + 1))
        follow_share = 1.0 if every <= FOLLOW_ALL_FLOPS else FOLLOW_SHARE
    start = np.array([n.value if n.kind == "logit" else 0.0 for n in nodes], np.float64)
    followed = follow(weights, stages, wanted, start, fill, share=follow_share, node_share=node_share)
    return Graph(nodes, weights, hooks, tokens[0].tolist(), share, unfollowed=wanted & ~followed)


def scalar_of(targets: list[Node], read: Tensor | None, logits: Tensor, dictionary: Any) -> Tensor:
    """The sum of the targets' scalars, one per row of ``read`` [targets, S, D] (what their dictionary reads; None for
    logits).

    A latent's scalar is its pre-activation, but for constants; a logit's is taken minus the mean logit, which the
    softmax does not see.
    """
    rows, positions = torch.arange(len(targets)), torch.tensor([n.position for n in targets])
    which = torch.tensor([n.index for n in targets])
    if read is None:
        positions = positions.clamp_max(logits.shape[1] - 1)  # some callers have the last position alone
        return (logits[rows, positions, which] - logits[rows, positions].mean(-1)).sum()
    return (read[rows, positions] * dictionary.W_enc.detach().t()[which]).sum()


def _layer_of(hook: str) -> int:
    match = re.fullmatch(r"blocks\.(\d+)\.(hook_resid_post|hook_out)", hook)
    if match is None:
        raise UsageError(
            f"{hook!r} is not a residual stream after a block; graphs are drawn between those (sites L0R, L1R, …)."
        )
    return int(match[1])


def clean_run(model: Any, dictionaries: dict[str, Any], hooks: list[str], tokens: Tensor) -> dict[str, Any]:
    """Activations of the untouched forward pass, codes and errors at every hook. BOS (position 0) is all error."""
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens, names_filter=["hook_embed", *hooks])
        out: dict[str, Any] = {"tokens": tokens, "logits": logits, "hook_embed": cache["hook_embed"].clone()}
        for hook in hooks:
            x = cache[hook].clone()
            if x.shape[-1] != dictionaries[hook].d_in:
                raise ConfigError(
                    f"the dictionary at {hook} has width {dictionaries[hook].d_in}, the hook {x.shape[-1]}: it is of"
                    " another model."
                )
            values, indices = dictionaries[hook].encode_sparse(x)
            values[:, 0] = 0
            out[hook] = (x, values[0], indices[0])
    return out


def source_nodes(
    clean: dict[str, Any], dictionaries: dict[str, Any], hooks: list[str]
) -> tuple[list[Node], dict[int, Tensor]]:
    """Nodes of all stages but the logits, and the vector [D] each adds to the residual stream, by node number."""
    nodes: list[Node] = []
    parts: dict[int, Tensor] = {}
    for position, vector in enumerate(clean["hook_embed"][0]):
        parts[len(nodes)] = vector
        nodes.append(Node("embedding", 0, position))
    for stage, hook in enumerate(hooks, start=1):
        x, values, indices = clean[hook]
        latent_nodes(nodes, parts, stage, x[0], values, indices, dictionaries[hook])
    return nodes, parts


def latent_nodes(
    nodes: list[Node],
    parts: dict[int, Tensor],
    stage: int,
    x_SD: Tensor,
    values: Tensor,
    indices: Tensor,
    dictionary: Any,
) -> None:
    """Append the nodes of one stage: active latents of every position, and what they and the bias leave of ``x_SD`` as
    the error.
    """
    directions, bias = dictionary.W_dec.detach(), dictionary.b_dec.detach()
    for position in range(len(x_SD)):
        on = values[position] > 0
        rest = x_SD[position].clone()
        for value, latent in zip(values[position][on], indices[position][on], strict=True):
            vector = value * directions[latent]
            parts[len(nodes)] = vector
            rest = rest - vector
            nodes.append(Node("latent", stage, position, int(latent), float(value)))
        parts[len(nodes)] = rest - bias if position else rest
        nodes.append(Node("error", stage, position, value=float(parts[len(nodes)].norm())))


def logit_targets(logits: Tensor, share: float, most: int) -> tuple[list[int], float]:
    """(likeliest tokens until they hold ``share``, at most ``most``; the probability they hold together)."""
    p = logits.softmax(-1)
    order = p.argsort(descending=True)
    n = min(most, int((p[order].cumsum(0) < share).sum()) + 1)
    return order[:n].tolist(), float(p[order[:n]].sum())


class Seen(Exception):
    """Raised inside a forward pass when what the targets read has been seen: no later layer runs."""


class Runner:
    """Copies of the prompt from one hook to the next, and gradients of chosen scalars at the first.

    Behind a residual hook only the blocks up to the target run (:class:`Tail`); where a model does more than its
    blocks, norm and unembedding, and before the first hook, the whole model runs as far as the target.
    """

    def __init__(self, model: Any, hooks: list[str], clean: dict[str, Any], dictionaries: dict[str, Any], freeze: bool):
        self.model, self.hooks, self.clean, self.dictionaries = model, hooks, clean, dictionaries
        self.frozen = frozen_hooks(model) if freeze else []
        try:
            self.tail: Tail | None = Tail(model, clean["tokens"])
        except UserError:
            self.tail = None

    def parameters(self, stage: int) -> int:
        """Of the blocks between a stage and the one before it."""
        first = 0 if stage == 1 else _layer_of(self.hooks[stage - 2]) + 1
        last = _layer_of(self.hooks[stage - 1]) if stage <= len(self.hooks) else len(self.model.blocks)
        return block_parameters(self.model, first, last)

    def gradients(self, stage: int, targets: list[Node]) -> Tensor:
        """[targets, S, D]: gradient of each target (see :func:`scalar_of`) with respect to the residual stream at the
        stage before it.
        """
        leaf, scalar = self.scalar(stage, targets)
        return torch.autograd.grad(scalar, leaf)[0].detach()

    def scalar(self, stage: int, targets: list[Node], also: Sequence[tuple[str, Any]] = ()) -> tuple[Tensor, Tensor]:
        """(the residual stream [targets, S, D] at the stage before, a leaf; the sum of the targets' scalars), with
        further hooks open.
        """
        before = "hook_embed" if stage == 1 else self.hooks[stage - 2]
        x = self.clean[before] if stage == 1 else self.clean[before][0]
        leaf = x.expand(len(targets), -1, -1).clone().requires_grad_(True)
        target = self.hooks[stage - 1] if stage <= len(self.hooks) else None
        with torch.enable_grad(), norms_edited():
            read, logits = self._forward(before, leaf, target, also)
            return leaf, scalar_of(targets, read, logits, None if target is None else self.dictionaries[target])

    def _forward(
        self, before: str, leaf: Tensor, target: str | None, also: Sequence[tuple[str, Any]]
    ) -> tuple[Tensor | None, Tensor]:
        """(what is at ``target`` [B, S, D], or None; logits [B, S or 1, V], empty where there is a target) with
        ``leaf`` in place of the value at ``before``.
        """
        seen: dict[str, Tensor] = {}

        def remember(value: Tensor, hook: Any) -> None:
            seen["x"] = value
            raise Seen

        hooks: list[tuple[str, Any]] = [(name, lambda value, hook: value.detach()) for name in self.frozen]
        hooks += also
        hooks += [] if target is None else [(target, remember)]
        rows = torch.zeros(len(leaf), dtype=torch.int64)
        try:
            if self.tail is not None and before != "hook_embed":
                start = _layer_of(before) + 1
                return None, self.tail.run(start, rows, hooks, leaf, grad=True)[:, None]
            with self.model.hooks(fwd_hooks=[*hooks, (before, lambda value, hook: leaf)]):
                return None, self.model(self.clean["tokens"].expand(len(leaf), -1))
        except Seen:
            return seen["x"], leaf.new_zeros(0)


def edges_of(gradient: Tensor, sources: list[int], nodes: list[Node], parts: dict[int, Tensor]) -> Tensor:
    """[targets, sources] from gradients [targets, S, D] and the vectors of the sources."""
    vectors = torch.stack([parts[i] for i in sources])
    positions = torch.tensor([nodes[i].position for i in sources])
    return torch.einsum("tsd,sd->ts", gradient[:, positions], vectors)
