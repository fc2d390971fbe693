"""Attention heads as senders: head → logit, head → another head's K, V or Q, and which position each head reads the
answer from.

Arrays are [P prompts, L layers, H heads, ...] effects per metric (see `effects.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.circuits.effects import METRICS
from workbench.analysis.circuits.layers import attention_layers
from workbench.analysis.circuits.paths import FrozenPaths, Path, collect
from workbench.analysis.circuits.tail import TOKENS, Hook
from workbench.analysis.circuits.tasks import PromptSet
from workbench.models.anatomy import anatomy_of

Effects = dict[str, np.ndarray]
_ROWS = 4096


@torch.no_grad()
def measure(
    paths: FrozenPaths,
    prompts: PromptSet,
    rows: Sequence[tuple[int, Tensor, Tensor]],
    path: Path,
    metrics: Sequence[str],
) -> list[Effects]:
    """Effects of mixer changes: each row group is (layer, change, prompts [R]), the change being one of the mixer's
    output [R,d_model] or of what a recurrent mixer reads [R,H,V]; one dict of [R] arrays per group.
    """
    answers, out, size = paths.tail.answers(prompts, metrics), [], paths.rows_at_once(_ROWS)
    for layer, delta, index in rows:
        parts = []
        for start in range(0, len(index), size):
            i = index[start : start + size]
            stream = paths.stream(layer, delta[start : start + size], i, path)
            parts.append(answers.changes(lambda rows, stream=stream: paths.unembedded(stream[rows]), i))  # type: ignore[misc]
        out.append({m: np.concatenate([p[m] for p in parts]) for m in metrics})
    return out


def measure_cells(
    paths: FrozenPaths,
    prompts: PromptSet,
    changes: Sequence[Tensor],
    path: Path,
    metrics: Sequence[str],
    chosen: np.ndarray | None = None,
) -> Effects:
    """Effects [P, L, *cells] of changes of what heads write, given attention layer by attention layer as [P, *cells,
    d_model]; NaN for cells that are not `chosen`, bool [L, *cells].
    """
    layers = attention_layers(paths.model)
    n, shape = len(prompts), changes[0].shape[1:-1]
    which = np.ones((len(changes), *shape), bool) if chosen is None else chosen
    at = [np.flatnonzero(w) for w in which]
    rows = [
        (layers[i], c.flatten(1, -2)[:, at[i]].flatten(0, 1), torch.arange(n).repeat_interleave(len(at[i])))
        for i, c in enumerate(changes)
        if len(at[i])
    ]
    found = measure(paths, prompts, rows, path, metrics)
    out = {m: np.full((n, len(changes), int(np.prod(shape))), np.nan) for m in metrics}
    for (l, _, _), effects in zip(rows, found, strict=True):
        i = layers.index(l)
        for m in metrics:
            out[m][:, i, at[i]] = effects[m].reshape(n, -1)
    return {m: v.reshape(n, len(changes), *shape) for m, v in out.items()}


def head_outputs(model: Any, prompts: PromptSet, paths: FrozenPaths, version: str, label: str) -> list[Tensor]:
    """Head outputs [P,H,d_head] of every attention layer at one position of one version of the prompts; `paths` keeps
    them.
    """
    tokens = getattr(prompts, version)
    whose = tokens.tobytes()
    if (whose, label) not in paths.head_outputs:
        labels = list(dict.fromkeys([label, "last", prompts.focus]))  # one pass serves all that will be asked for
        at = [torch.as_tensor(prompts.position(name)) for name in labels]

        def pick(v: Tensor, rows: slice) -> Tensor:
            return torch.stack([v[torch.arange(len(v)), where[rows]] for where in at], 1)

        names = [f"blocks.{l}.attn.hook_z" for l in attention_layers(model)]
        found = list(collect(model, tokens, dict.fromkeys(names, pick)).values())
        for i, name in enumerate(labels):
            paths.head_outputs[whose, name] = [v[:, i] for v in found]
    return paths.head_outputs[whose, label]


@torch.no_grad()
def head_changes(model: Any, prompts: PromptSet, paths: FrozenPaths, source: str, label: str) -> list[Tensor]:
    """What each head's output at one position changes in the stream when it comes from the source prompts: of every
    attention layer [P,H,d_model].
    """
    clean, new = (head_outputs(model, prompts, paths, version, label) for version in ("clean", source))
    return [
        torch.einsum("phe,hed->phd", other - z, model.blocks[l].attn.W_O)
        for l, z, other in zip(attention_layers(model), clean, new, strict=True)
    ]


@torch.no_grad()
def head_to_logit(
    model: Any,
    prompts: PromptSet,
    paths: FrozenPaths,
    *,
    source: str = "control",
    path: Path = "direct",
    metrics: Sequence[str] = METRICS,
) -> Effects:
    """Replace one head's output at the last position by that of the source prompts: [P,L,H], L attention layers."""
    return measure_cells(paths, prompts, head_changes(model, prompts, paths, source, "last"), path, metrics)


@torch.no_grad()
def head_to_head(
    model: Any,
    prompts: PromptSet,
    paths: FrozenPaths,
    receiver: tuple[int, int],
    *,
    inputs: Literal["k", "v", "kv", "q"] = "kv",
    position: str = "B",
    source: str = "control",
    metrics: Sequence[str] = METRICS,
    chosen: np.ndarray | None = None,
) -> Effects:
    """Replace one earlier head's output at `position` by its value in the source prompts, as seen by the receiver's
    inputs alone: [P,L_r,H], L_r the attention layers before the receiver's; NaN for senders that are not `chosen`,
    bool [L_r,H].

    The path to the receiver is direct (other heads clean, MLPs follow); everything after the receiver follows. Keys and
    values belong to all query heads that share them, and so does the effect.
    """
    layer, head = receiver
    senders = [l for l in attention_layers(model) if l < layer]
    if not senders:
        raise UsageError(
            f"heads of layer {layer} have no attention heads before them whose outputs they could receive. Name a"
            " later layer."
        )
    at, n = torch.as_tensor(prompts.position(position)), len(prompts)
    changes = head_changes(model, prompts, paths, source, position)
    check_inputs(model, paths, layer, at)
    answers, size = paths.tail.answers(prompts, metrics), max(1, TOKENS // paths.tail.tokens.shape[1])
    out = {m: np.full((n, len(senders), changes[0].shape[1]), np.nan) for m in metrics}
    unit = input_rows(model, layer, head, inputs)
    for sender, l in enumerate(senders):
        units = np.arange(changes[sender].shape[1]) if chosen is None else np.flatnonzero(chosen[sender])
        if not len(units):
            continue
        index = torch.arange(n).repeat_interleave(len(units))
        seen = paths.carry(l, changes[sender][:, units].flatten(0, 1), index, at=at[index], to=layer)
        parts: list[Effects] = []
        for start in range(0, len(index), size):
            i = index[start : start + size]
            made = paths.head_inputs(layer, seen[start : start + size], i, at[i])
            hooks = [(f"blocks.{layer}.attn.hook_{c}", _set_head(made[c][:, h], at[i], h)) for c, h in unit.items()]
            logits = paths.tail.run(layer, i, hooks)
            parts.append(answers.changes(lambda rows, logits=logits: logits[rows], i))  # type: ignore[misc]
        for m in metrics:
            out[m][:, sender, units] = np.concatenate([p[m] for p in parts]).reshape(n, len(units))
    return out


def kv_head(model: Any, layer: int, head: int) -> int:
    """The key-value head that a query head reads: several share one (grouped queries, Ainslie et al. 2023, arXiv
    2305.13245).
    """
    at = anatomy_of(model).layers[layer]
    return head // (at.heads // at.kv_heads)


def input_rows(model: Any, layer: int, head: int, inputs: Sequence[str]) -> dict[str, int]:
    """Input (q, k, v) -> the row of its hook that a query head reads; where a head's output is gated and the gate is
    projected with the query, the query's row alone.
    """
    at = anatomy_of(model).layers[layer]
    query, shared = head * (at.query_rows // at.heads), kv_head(model, layer, head)
    return {c: query if c == "q" else shared for c in inputs}


def check_inputs(model: Any, paths: FrozenPaths, layer: int, at: Tensor) -> None:
    """Queries, keys and values of one position alone must be those of the whole prompt.

    Raises:
        UsageError: they are not, because a position enters them.
    """
    index, seen = torch.arange(len(at)), {}

    def keep(name: str) -> Any:
        return f"blocks.{layer}.attn.hook_{name}", lambda value, hook: seen.update({name: value[index, at]})

    paths.tail.block(layer, [keep(name) for name in "qkv"])
    made = paths.head_inputs(layer, paths.tail.inputs[layer][index, at], index, at)
    for name, value in seen.items():
        if not torch.allclose(value, made[name], atol=1e-3 * float(value.abs().max()), rtol=1e-3):
            raise UsageError(
                f"attn.hook_{name} of {model.cfg.architecture} is not made from the values before it alone (it depends"
                " on the position), so effects of heads on heads are not defined for this model. Leave that analysis"
                " out."
            )


def _set_head(value: Tensor, at: Tensor, head: int) -> Any:
    def edit(v: Tensor, hook: Any) -> Tensor:
        v = v.clone()
        v[torch.arange(len(v)), at, head] = value
        return v

    return edit


@torch.no_grad()
def read_profile(
    model: Any,
    prompts: PromptSet,
    paths: FrozenPaths,
    labels: Sequence[str],
    *,
    path: Path = "direct",
    metrics: Sequence[str] = METRICS,
) -> Effects:
    """What each head's last query loses when key and value at one position come from the corrupted run:
    [P,L,H,len(labels)], L attention layers.

    The Transformer's counterpart of the Mamba's write profile. Queries stay clean; NaN where a label is outside the
    prompt.
    """
    changes = read_changes(model, prompts, labels)
    return inside(measure_cells(paths, prompts, changes, path, metrics), prompts, labels)


def inside(effects: Effects, prompts: PromptSet, labels: Sequence[str]) -> Effects:
    """Effects [P,L,H,O] with NaN where a label is outside a prompt."""
    outside = np.stack([prompts.position(label) < 0 for label in labels], 1)
    return {m: np.where(outside[:, None, None, :], np.nan, v) for m, v in effects.items()}


@torch.no_grad()
def read_changes(model: Any, prompts: PromptSet, labels: Sequence[str]) -> list[Tensor]:
    """What each head writes at the last position less, or more, when key and value at one labelled position come from
    the corrupted run: of every layer [P,H,len(labels),d_model].
    """
    at = torch.as_tensor(np.stack([prompts.position(label) for label in labels], 1))  # [P,O]
    n, layers, changes = len(prompts), attention_layers(model), []
    names = [f"blocks.{l}.attn.hook_{k}" for l in layers for k in ("q", "v", "attn_scores")]
    gated = {l: name for l in layers if (name := anatomy_of(model).layers[l].gated)}
    picks: dict[str, Any] = {name: _last_row if "scores" in name else (lambda v, rows: v) for name in names}
    clean = collect(model, prompts.clean, picks | dict.fromkeys(gated.values(), lambda v, rows: v[:, -1]))
    corrupt = _cross(model, prompts.corrupt, {l: clean[f"blocks.{l}.attn.hook_q"][:, -1] for l in layers})
    p, keep = torch.arange(n)[:, None], at.clamp_min(0)
    for l in layers:
        scores = clean[f"blocks.{l}.attn.hook_attn_scores"]  # [P,H,T]
        v, v_cross = (_per_query(x, scores.shape[1]) for x in (clean[f"blocks.{l}.attn.hook_v"], corrupt[f"v{l}"]))
        v_new, s_new = v_cross[p, keep], corrupt[f"s{l}"].transpose(1, 2)[p, keep]  # [P,O,H,e], [P,O,H]
        rows_scores = (
            scores[:, None]
            .repeat(1, at.shape[1], 1, 1)
            .scatter(3, keep[:, :, None, None].expand(-1, -1, scores.shape[1], 1), s_new[..., None])
        )
        pattern = rows_scores.softmax(-1)  # [P,O,H,T]
        weight = pattern.gather(3, keep[:, :, None, None].expand(-1, -1, scores.shape[1], 1))  # [P,O,H,1]
        z = torch.einsum("poht,pthe->pohe", pattern, v) + weight * (v_new - v[p, keep])
        change = z - torch.einsum("pht,pthe->phe", scores.softmax(-1), v)[:, None]
        if l in gated:
            change = change * clean[gated[l]].sigmoid().reshape(n, 1, *change.shape[2:])
        changes.append(torch.einsum("pohe,hed->phod", change, model.blocks[l].attn.W_O))
    return changes


def _per_query(v: Tensor, n_heads: int) -> Tensor:
    """Values [P,T,KV,e] as each query head reads them: [P,T,H,e]."""
    return v.repeat_interleave(n_heads // v.shape[2], 2)


def _last_row(v: Tensor, rows: slice) -> Tensor:
    return v[:, :, -1]


def _cross(model: Any, tokens: np.ndarray, queries: dict[int, Tensor]) -> dict[str, Tensor]:
    """Values, and scores of the given last queries, on other tokens: v{l} [P,T,H,e], s{l} [P,H,T]."""

    def with_queries(rows: slice) -> list[Hook]:
        def put(query: Tensor) -> Any:
            def edit(v: Tensor, hook: Any) -> Tensor:
                v = v.clone()
                v[:, -1] = query[rows]
                return v

            return edit

        return [(f"blocks.{l}.attn.hook_q", put(query)) for l, query in queries.items()]

    names = {f"blocks.{l}.attn.hook_v": f"v{l}" for l in queries}
    names |= {f"blocks.{l}.attn.hook_attn_scores": f"s{l}" for l in queries}
    picks = {name: _last_row if "scores" in name else (lambda v, rows: v) for name in names}
    seen = collect(model, tokens, picks, edits=with_queries)
    return {names[name]: value for name, value in seen.items()}
