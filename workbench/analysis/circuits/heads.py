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
from workbench.analysis.circuits.effects import METRICS, answer_metrics
from workbench.analysis.circuits.paths import FrozenPaths, Path, collect
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
    """Effects of mixer changes: each row group is (layer, delta [R,d_model], prompts [R]); one dict of [R] arrays per
    group.
    """
    answer, wrong, clean = torch.as_tensor(prompts.answer), torch.as_tensor(prompts.wrong), paths.tail.logits
    before = answer_metrics(clean, answer, wrong, clean, metrics)
    out = []
    for layer, delta, index in rows:
        parts = []
        for start in range(0, len(index), _ROWS):
            i = index[start : start + _ROWS]
            after = answer_metrics(
                paths.logits(layer, delta[start : start + _ROWS], i, path), answer[i], wrong[i], clean[i], metrics
            )
            parts.append({m: after[m] - before[m][i.numpy()] for m in metrics})
        out.append({m: np.concatenate([p[m] for p in parts]) for m in metrics})
    return out


def _z(model: Any, tokens: np.ndarray, position: Tensor) -> list[Tensor]:
    """Head outputs [P,H,d_head] of every layer at one position per prompt."""
    hooks = {
        f"blocks.{l}.attn.hook_z": lambda v, rows: v[torch.arange(len(v)), position[rows]]
        for l in range(len(model.blocks))
    }
    return list(collect(model, tokens, hooks).values())


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
    """Replace one head's output at the last position by its value in the source prompts: [P,L,H]."""
    last, n = torch.as_tensor(prompts.last), len(prompts)
    clean, new = _z(model, prompts.clean, last), _z(model, getattr(prompts, source), last)
    rows = []
    for l, (z, other) in enumerate(zip(clean, new, strict=True)):
        delta = torch.einsum("phe,hed->phd", other - z, model.blocks[l].attn.W_O)
        rows.append((l, delta.flatten(0, 1), torch.arange(n).repeat_interleave(delta.shape[1])))
    found = measure(paths, prompts, rows, path, metrics)
    return {m: np.stack([f[m].reshape(n, -1) for f in found], 1) for m in metrics}


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
) -> Effects:
    """Replace one earlier head's output at `position` by its value in the source prompts, as seen by the receiver's
    inputs alone: [P,L_r,H].

    The path to the receiver is direct (other heads clean, MLPs follow); everything after the receiver follows. Keys and
    values belong to all query heads that share them, and so does the effect.
    """
    layer, head = receiver
    if layer == 0:
        raise UsageError("heads of layer 0 have no earlier heads to receive from.")
    at, n = torch.as_tensor(prompts.position(position)), len(prompts)
    clean, new = _z(model, prompts.clean, at), _z(model, getattr(prompts, source), at)
    found: list[Effects] = []
    _check_inputs(model, paths, layer, at)
    before = answer_metrics(
        paths.tail.logits, torch.as_tensor(prompts.answer), torch.as_tensor(prompts.wrong), paths.tail.logits, metrics
    )
    for l in range(layer):
        delta = torch.einsum("phe,hed->phd", new[l] - clean[l], model.blocks[l].attn.W_O)
        n_heads = delta.shape[1]
        index = torch.arange(n).repeat_interleave(n_heads)
        seen = paths.carry(l, delta.flatten(0, 1), index, at=at[index], to=layer)
        parts: list[Effects] = []
        for start in range(0, len(index), 256):
            i = index[start : start + 256]
            made = paths.head_inputs(layer, seen[start : start + 256], i)
            unit = {c: head if c == "q" else kv_head(model, layer, head) for c in inputs}
            hooks = [(f"blocks.{layer}.attn.hook_{c}", _set_head(made[c][:, h], at[i], h)) for c, h in unit.items()]
            logits = paths.tail.run(layer, i, hooks)
            parts.append(
                answer_metrics(
                    logits,
                    torch.as_tensor(prompts.answer)[i],
                    torch.as_tensor(prompts.wrong)[i],
                    paths.tail.logits[i],
                    metrics,
                )
            )
        found.append(
            {m: np.concatenate([p[m] for p in parts]).reshape(n, n_heads) - before[m][:, None] for m in metrics}
        )
    return {m: np.stack([f[m] for f in found], 1) for m in metrics}


def kv_head(model: Any, layer: int, head: int) -> int:
    """The key-value head that a query head reads: several share one (grouped queries, Ainslie et al. 2023, arXiv
    2305.13245).
    """
    at = anatomy_of(model).layers[layer]
    return head // (at.heads // at.kv_heads)


def _check_inputs(model: Any, paths: FrozenPaths, layer: int, at: Tensor) -> None:
    """Queries, keys and values of one position alone must be those of the whole prompt.

    Raises:
        UsageError: they are not, because a position enters them.
    """
    index, seen = torch.arange(len(at)), {}

    def keep(name: str) -> Any:
        return f"blocks.{layer}.attn.hook_{name}", lambda value, hook: seen.update({name: value[index, at]})

    paths.tail.run(layer, index, [keep(name) for name in "qkv"])
    made = paths.head_inputs(layer, paths.tail.inputs[layer][index, at], index)
    for name, value in seen.items():
        if not torch.allclose(value, made[name], atol=1e-3 * float(value.abs().max()), rtol=1e-3):
            raise UsageError(
                f"attn.hook_{name} of {model.cfg.architecture} depends on the position itself; effects of heads on"
                " heads are not defined for it."
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
    [P,L,H,len(labels)].

    The Transformer's counterpart of the Mamba's write profile. Queries stay clean; NaN where a label is outside the
    prompt.
    """
    at = torch.as_tensor(np.stack([prompts.position(label) for label in labels], 1))  # [P,O]
    n, n_layers, rows = len(prompts), len(model.blocks), []
    names = [f"blocks.{l}.attn.hook_{k}" for l in range(n_layers) for k in ("q", "v", "attn_scores")]
    clean = collect(
        model, prompts.clean, {name: _last_row if "scores" in name else (lambda v, rows: v) for name in names}
    )
    corrupt = _cross(model, prompts.corrupt, {l: clean[f"blocks.{l}.attn.hook_q"][:, -1] for l in range(n_layers)})
    p, keep = torch.arange(n)[:, None], at.clamp_min(0)
    for l in range(n_layers):
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
        delta = torch.einsum(
            "pohe,hed->phod",
            z - torch.einsum("pht,pthe->phe", scores.softmax(-1), v)[:, None],
            model.blocks[l].attn.W_O,
        )
        rows.append((l, delta.flatten(0, 2), torch.arange(n).repeat_interleave(delta.shape[1] * delta.shape[2])))
    found = measure(paths, prompts, rows, path, metrics)
    out = {m: np.stack([f[m].reshape(n, -1, len(labels)) for f in found], 1) for m in metrics}
    for m in metrics:
        out[m][np.broadcast_to((at < 0).numpy()[:, None, None, :], out[m].shape)] = np.nan
    return out


def _per_query(v: Tensor, n_heads: int) -> Tensor:
    """Values [P,T,KV,e] as each query head reads them: [P,T,H,e]."""
    return v.repeat_interleave(n_heads // v.shape[2], 2)


def _last_row(v: Tensor, rows: slice) -> Tensor:
    return v[:, :, -1]


def _cross(model: Any, tokens: np.ndarray, queries: dict[int, Tensor]) -> dict[str, Tensor]:
    """Values, and scores of the given last queries, on other tokens: v{l} [P,T,H,e], s{l} [P,H,T]."""
    kept: dict[str, list[Tensor]] = {f"{k}{l}": [] for l in queries for k in "vs"}
    for start in range(0, len(tokens), 16):
        rows = slice(start, start + 16)
        hooks: list[Any] = []
        for l, query in queries.items():

            def set_query(v: Tensor, hook: Any, query: Tensor = query, rows: slice = rows) -> Tensor:
                v = v.clone()
                v[:, -1] = query[rows]
                return v

            hooks += [(f"blocks.{l}.attn.hook_q", set_query)]
            hooks += [(f"blocks.{l}.attn.hook_v", lambda v, hook, l=l: kept[f"v{l}"].append(v.clone()))]
            hooks += [
                (f"blocks.{l}.attn.hook_attn_scores", lambda v, hook, l=l: kept[f"s{l}"].append(v[:, :, -1].clone()))
            ]
        model.run_with_hooks(torch.as_tensor(tokens[rows]), fwd_hooks=hooks, use_cache=False)
    return {k: torch.cat(v) for k, v in kept.items()}
