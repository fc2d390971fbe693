"""Attribution graph through transcoders: every layer's MLP is replaced by its transcoder, and what is left is linear.

With attention patterns and norm denominators held at this prompt's values, the stream between two transcoders is a
linear map, so an edge is exact and needs no gradient of an MLP (Dunefsky et al. 2024, arXiv 2406.11944; Ameisen et al.
2025, *Circuit Tracing*, with transcoders of single layers): the edge from part i of one layer's MLP output, or of the
embedding, to latent j of a later layer is <v_i, dz_j/dv_i>, over all layers in between at once. What a transcoder
misses of its MLP is an error node; a skip connection is part of the linear map. The MLP of a layer without a transcoder
enters by its gradient.

With a transcoder for every layer the shares add up: z_j = sum_i w_ji + constant_j, the constant being z_j with all
sources at zero and only biases left. What stays nonlinear, such as a soft cap on the logits, shows as a gap in that
sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import ConfigError, UsageError
from workbench.analysis.graph.follow import NODE_SHARE, block_parameters, target_flops
from workbench.analysis.graph.trace import (
    Graph,
    Node,
    Seen,
    connected,
    frozen_hooks,
    holding,
    latent_nodes,
    scalar_of,
)
from workbench.models.head import norms_edited
from workbench.models.recurrent import recurrent_layers
from workbench.models.sites import site_hooks


def trace_transcoders(
    model: Any,
    transcoders: dict[str, Any],
    tokens: Tensor,
    *,
    logit_share: float = 0.95,
    max_logits: int = 10,
    freeze: bool = True,
    batch: int = 32,
    node_share: float = NODE_SHARE,
    follow_share: float | None = None,
) -> Graph:
    """The full graph of one prompt through transcoders.

    Args:
        model: a TransformerBridge. transcoders: hook name of an MLP's input (``blocks.1.ln2.hook_out``) -> transcoder,
        any order.
        tokens: [1, S] or [S]. logit_share, max_logits, batch, node_share, follow_share: see
            :func:`workbench.analysis.graph.trace.trace`.

    Raises:
        UsageError: no transcoder, or a hook the model lacks. ConfigError: a width that does not fit.
    """
    tokens = tokens.reshape(1, -1)
    if not transcoders:
        raise UsageError(
            "a graph needs at least one transcoder. Train them at the sites L0TC, L1TC, …: `workbench train`."
        )
    if unknown := [h for h in transcoders if h not in model.hook_dict]:
        raise UsageError(
            f"the model has no hook {unknown[0]!r}. The transcoder is of another model, or names a wrong hook."
        )
    reads = sorted(transcoders, key=lambda hook: int(hook.split(".")[1]))
    cut = Cut(model, {hook: transcoders[hook] for hook in reads}, tokens, freeze)
    nodes, parts = sources_of(cut)
    graph = connected(
        nodes,
        parts,
        cut.logits[0, -1],
        reads,
        tokens,
        cut.gradients,
        lambda stage: target_flops(block_parameters(model, 0, cut.layer(stage)), tokens.shape[1]),
        logit_share=logit_share,
        max_logits=max_logits,
        batch=batch,
        node_share=node_share,
        follow_share=follow_share,
    )
    linear = not any(layer.curved for layer in recurrent_layers(model))
    if freeze and linear and len(reads) == model.cfg.n_layers:
        graph.totals, graph.constants = cut.scalars(graph.nodes, cut.sources()), cut.scalars(graph.nodes, cut.biases())
    return graph


def sources_of(cut: Cut) -> tuple[list[Node], dict[int, Tensor]]:
    """Nodes of all stages but the logits, and the vector [D] each adds to the residual stream, by node number."""
    nodes = [Node("embedding", 0, position) for position in range(cut.embedding.shape[1])]
    parts = dict(enumerate(cut.embedding[0]))
    for stage, (read, transcoder) in enumerate(cut.transcoders.items(), start=1):
        x, y = cut.read[read], cut.written[read]
        values, indices = transcoder.encode_sparse(x)
        values = values.clone()
        values[:, 0] = 0  # the first position is all error, as in residual graphs
        past = skip_of(transcoder, x)
        latent_nodes(nodes, parts, stage, (y if past is None else y - past)[0], values[0], indices[0], transcoder)
    return nodes, parts


def skip_of(transcoder: Any, x: Tensor) -> Tensor | None:
    """[B, S, d_out] what the skip connection adds; nothing at the first position, whose MLP output is all error.

    None without one.
    """
    past = transcoder.skip(x)
    return None if past is None else torch.cat([torch.zeros_like(past[:, :1]), past[:, 1:]], 1)


class Cut:
    """The prompt with every transcoder's MLP output a free variable at its clean value."""

    def __init__(self, model: Any, transcoders: dict[str, Any], tokens: Tensor, freeze: bool):
        self.model, self.transcoders, self.tokens = model, transcoders, tokens
        self.writes = {read: site_hooks(model, f"L{read.split('.')[1]}TC")[1] for read in transcoders}
        frozen = frozen_hooks(model) if freeze else []
        with torch.no_grad():
            names = ["hook_embed", *self.writes, *self.writes.values(), *frozen]
            self.logits, cache = model.run_with_cache(tokens, names_filter=names, use_cache=False)
        self.held = {name: cache[name].clone() for name in frozen if name in cache}
        self.embedding = cache["hook_embed"].clone()
        self.read = {read: cache[read].clone() for read in transcoders}
        self.written = {read: cache[write].clone() for read, write in self.writes.items()}
        for read, transcoder in transcoders.items():
            for what, width, have in (
                ("d_in", transcoder.d_in, self.read[read]),
                ("d_out", transcoder.d_out, self.written[read]),
            ):
                if have.shape[-1] != width:
                    raise ConfigError(
                        f"the transcoder at {read} has {what} = {width}, the model's width there is {have.shape[-1]}:"
                        " it is of another model."
                    )

    def layer(self, stage: int) -> int:
        """The last block that a target of a stage depends on."""
        reads = list(self.transcoders)
        return int(reads[stage - 1].split(".")[1]) if stage <= len(reads) else len(self.model.blocks)

    def gradients(self, stage: int, targets: list[Node]) -> dict[int, Tensor]:
        """Earlier stage -> [targets, S, D]: gradients of the targets (see
        :func:`workbench.analysis.graph.trace.scalar_of`) by embedding and MLP outputs.
        """
        leaves = [x.expand(len(targets), -1, -1).clone().requires_grad_(True) for x in self.sources()]
        read = list(self.transcoders)[stage - 1] if stage <= len(self.transcoders) else None
        with torch.enable_grad():
            seen, logits = self.run(leaves, until=read)
            scalar = scalar_of(
                targets, None if read is None else seen[read], logits, None if read is None else self.transcoders[read]
            )
        found = torch.autograd.grad(scalar, leaves[:stage], allow_unused=True)
        return {before: g.detach() for before, g in enumerate(found) if g is not None}

    def sources(self) -> list[Tensor]:
        """[1, S, D] each: the embedding, and every MLP output less its skip connection."""
        skips = [skip_of(t, self.read[read]) for read, t in self.transcoders.items()]
        return [
            self.embedding,
            *(y if past is None else y - past for y, past in zip(self.written.values(), skips, strict=True)),
        ]

    def biases(self) -> list[Tensor]:
        """:meth:`sources` of which only the decoders' biases are left."""
        out = [torch.zeros_like(x) for x in self.sources()]
        for x, transcoder in zip(out[1:], self.transcoders.values(), strict=True):
            x[:, 1:] = transcoder.b_dec.detach()
        return out

    def scalars(self, nodes: list[Node], sources: list[Tensor]) -> np.ndarray:
        """[nodes] the targets' scalars in the forward pass from these sources; zero for other nodes."""
        out = np.zeros(len(nodes))
        with torch.no_grad():
            seen, logits = self.run(sources)
            z = [transcoder.pre_activations(seen[read][0]) for read, transcoder in self.transcoders.items()]
            final = logits[0, -1] - logits[0, -1].mean()
        for i, n in enumerate(nodes):
            if n.kind == "latent":
                out[i] = float(z[n.stage - 1][n.position, n.index])
            elif n.kind == "logit":
                out[i] = float(final[n.index])
        return out

    def run(
        self, leaves: list[Tensor], until: str | None = None, more: Sequence[tuple[str, Any]] = ()
    ) -> tuple[dict[str, Tensor], Tensor]:
        """(what each transcoder reads [B, S, d_in], logits [B, S, V]) from given :meth:`sources`, the frozen values
        held; ``more`` hooks run too. Behind ``until``, what a transcoder reads, nothing runs, and logits are empty.
        """
        seen: dict[str, Tensor] = {}
        hooks: list[tuple[str, Any]] = [*holding(self.held), ("hook_embed", lambda value, hook: leaves[0])]
        for leaf, (read, write) in zip(leaves[1:], self.writes.items(), strict=True):
            transcoder = self.transcoders[read]

            def remember(value: Tensor, hook: Any, read: str = read) -> None:
                seen[read] = value  # a hook may be called by another of its names
                if read == until:
                    raise Seen

            def replace(
                value: Tensor, hook: Any, leaf: Tensor = leaf, read: str = read, transcoder: Any = transcoder
            ) -> Tensor:
                past = skip_of(transcoder, seen[read])
                return leaf if past is None else leaf + past

            hooks += [(read, remember), (write, replace)]
        hooks += more
        try:
            with norms_edited(), self.model.hooks(fwd_hooks=hooks):
                return seen, self.model(self.tokens.expand(len(leaves[0]), -1), use_cache=False)
        except Seen:
            return seen, leaves[0].new_zeros(0)
