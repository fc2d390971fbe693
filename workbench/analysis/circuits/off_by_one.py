"""Where a recurrent layer writes what it will need: the effect of the write at one position, by offset from the token
written about.

Off-by-one test of Towards Universality (arXiv 2410.06672, section 6.2): the last state is recomputed with everything
that the layer does to it at one position p (decay, erasure, write) taken from the run in which token B was changed. All
other layers' states stay clean. Offset = p - position of B; the paper's mamba-130m peaks at +1. Where a model peaks is
its own: found here, never assumed.

The recurrence being linear in the state, with ' for the corrupted run and everything else clean, and T_t for decay and
erasure at t,

    ΔS_{T-1} = T_{T-1} ⋯ T_{p+1} [T'_p S_{p-1} + k'_p v'_pᵀ - S_p].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.circuits.effects import METRICS
from workbench.analysis.circuits.heads import Effects, measure
from workbench.analysis.circuits.layer_runs import LayerRun, layer_runs
from workbench.analysis.circuits.layers import state_layers
from workbench.analysis.circuits.paths import FrozenPaths, Path
from workbench.analysis.circuits.tasks import PromptSet
from workbench.models.recurrent.algebra import decays, read_of, reads_from, states_after
from workbench.models.recurrent.factors import Factors, advance, outer


class WriteTerms:
    """What one layer's state is made of, at O positions [P,O] of P prompts, in the clean and the corrupted run."""

    def __init__(self, clean: LayerRun, corrupt: LayerRun, positions: Tensor):
        self.layer, self.positions = clean.layer, positions
        self._clean, self._corrupt = clean, corrupt

    def y_changes(self, taps: Sequence[int | None] = (None,)) -> Tensor:
        """Change of what is read at the last position [P,O,len(taps),H,V] when what is done at each position, alone, is
        the corrupted run's; where a tap is given, when it follows from the convolution's input that many positions back
        alone.
        """
        parts = []
        for rows in self._clean.batches():
            f, reads, before = self._kept(rows)
            now = self._next(f, before, rows)
            made = [self._other(tap, rows) for tap in taps]
            changes = [read_of(reads, self._next(g, before, rows) - now) for g in made]
            parts.append(torch.stack(changes, 2))
        return torch.cat(parts)

    def by_key(self) -> Tensor:
        """Change of what is read [P,O,H,K,V] before the sum over keys, the whole of each position being corrupted."""
        parts = []
        for rows in self._clean.batches():
            f, reads, before = self._kept(rows)
            parts.append(reads * (self._next(self._corrupt.factors(rows), before, rows) - self._next(f, before, rows)))
        return torch.cat(parts)

    def _kept(self, rows: slice) -> tuple[Factors, Tensor, Tensor]:
        """(terms of the clean run, what the last read takes of each position's state, the state before it)."""
        f, positions = self._clean.factors(rows), self.positions[rows]
        reads = reads_from(f)[torch.arange(len(positions))[:, None], positions.clamp_min(0)]
        return f, reads, states_after(f, positions - 1)

    def _other(self, tap: int | None, rows: slice) -> Factors:
        return self._corrupt.factors(rows) if tap is None else self._clean.with_tap(self._corrupt, tap, rows)

    def _next(self, f: Factors, before: Tensor, rows: slice) -> Tensor:
        """States [P,O,H,K,V] after the positions, by the terms of ``f``, from the states before."""
        positions = self.positions[rows].clamp_min(0)
        at = torch.arange(len(positions))[:, None], positions
        write = outer(f.write_key[at], f.write_value[at])
        if f.erase_key is None or f.erase_strength is None:
            return advance(before, decays(f)[at], write)
        return advance(before, decays(f)[at], write, f.erase_key[at], f.erase_strength[at])


@dataclass(frozen=True)
class ChannelEffects:
    """Channels of one layer's write at one position, for the logit difference; D = heads × values, N keys (a Mamba's
    states).

    `channels` [P,D] and `states` [P,D,N]: slope of the direct path times the change of y (first order; `states` sums to
    `channels`). `exact` [P,S]: effect of corrupting the `sizes[s]` largest channels together, in `order` of their mean
    size; the last is all of them.
    """

    layer: int
    label: str
    channels: np.ndarray
    states: np.ndarray
    sizes: tuple[int, ...]
    exact: np.ndarray
    order: np.ndarray


@torch.no_grad()
def write_profile(
    model: Any,
    prompts: PromptSet,
    paths: FrozenPaths,
    labels: Sequence[str],
    *,
    path: Path = "direct",
    metrics: Sequence[str] = METRICS,
) -> Effects:
    """Effect of corrupting the write at each labelled position (`B`, `B+1`, …), layer by layer: [P,L,len(labels)], L
    recurrent layers.
    """
    found = _profile(model, prompts, paths, labels, path, metrics, [None])
    return {m: values[..., 0] for m, values in found.items()}


@torch.no_grad()
def conv_profile(
    model: Any,
    prompts: PromptSet,
    paths: FrozenPaths,
    labels: Sequence[str],
    *,
    path: Path = "direct",
    metrics: Sequence[str] = METRICS,
) -> Effects:
    """The write profile with only one tap of the layer's convolution corrupted: [P,L,len(labels),K], tap k reads k
    positions back.

    Each tap starts from the clean window, so effects are of single taps and not cumulative; they need not add up. What
    a layer takes from its input without the convolution (Δ of Mamba-2, β and decay of a delta net) stays clean.
    """
    widths = {layer.width for layer in state_layers(model)}
    if len(widths) > 1:
        raise UsageError(
            f"this model's convolutions span {' and '.join(map(str, sorted(widths)))} positions; a profile over"
            " offsets needs one number for all layers. Leave this analysis out."
        )
    return _profile(model, prompts, paths, labels, path, metrics, range(widths.pop()))


def write_terms(model: Any, prompts: PromptSet, labels: Sequence[str]) -> list[WriteTerms]:
    """The write terms of every recurrent layer at the labelled positions, from one clean and one corrupted run."""
    positions = torch.as_tensor(np.stack([prompts.position(label) for label in labels], 1))
    runs = zip(layer_runs(model, prompts.clean), layer_runs(model, prompts.corrupt), strict=True)
    return [WriteTerms(clean, corrupt, positions) for clean, corrupt in runs]


def _profile(
    model: Any,
    prompts: PromptSet,
    paths: FrozenPaths,
    labels: Sequence[str],
    path: Path,
    metrics: Sequence[str],
    taps: Sequence[int | None],
) -> Effects:
    """[P,L,len(labels),len(taps)]; tap None is the whole write."""
    shape = (len(prompts), len(labels), len(taps))
    index = torch.arange(len(prompts)).repeat_interleave(len(labels) * len(taps))
    rows = []
    for terms in write_terms(model, prompts, labels):
        rows.append((terms.layer.index, terms.y_changes(taps).flatten(0, 2), index))
    found = measure(paths, prompts, rows, path, metrics)
    out = {m: np.stack([f[m].reshape(shape) for f in found], 1) for m in metrics}
    absent = np.stack([prompts.position(label) for label in labels], 1) < 0
    for m in metrics:
        out[m][np.broadcast_to(absent[:, None, :, None], out[m].shape)] = np.nan
    return out


@torch.no_grad()
def channel_effects(
    model: Any,
    prompts: PromptSet,
    paths: FrozenPaths,
    layer: int,
    label: str,
    *,
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64),
) -> ChannelEffects:
    """Which of a layer's channels carry the write at one position: first-order share of each, and exact effects of the
    largest together.
    """
    terms = next(found for found in write_terms(model, prompts, [label]) if found.layer.index == layer)
    per_key = terms.by_key()[:, 0]  # [P,H,K,V]
    change = per_key.sum(2)  # Δy [P,H,V]
    to_metric = _slope(prompts, paths, layer, change)  # ∂ logit_diff / ∂y [P,H,V]
    channels = (to_metric * change).flatten(1)
    order = channels.mean(0).abs().argsort(descending=True)
    sizes = [k for k in sizes if k < len(order)] + [len(order)]
    kept = torch.stack([torch.zeros(len(order)).index_fill(0, order[:k], 1.0) for k in sizes])  # [S,D]
    delta = (change.flatten(1)[:, None] * kept).flatten(0, 1).unflatten(-1, change.shape[1:])
    index = torch.arange(len(prompts)).repeat_interleave(len(sizes))
    exact = measure(paths, prompts, [(layer, delta, index)], "direct", ("logit_diff",))[0]["logit_diff"]
    states = (to_metric[:, :, None] * per_key).transpose(2, 3).flatten(1, 2)  # [P,D,N]
    return ChannelEffects(
        layer,
        label,
        channels.numpy(),
        states.numpy(),
        tuple(sizes),
        exact.reshape(len(prompts), -1),
        order.numpy(),
    )


def _slope(prompts: PromptSet, paths: FrozenPaths, layer: int, like: Tensor) -> Tensor:
    """∂ logit_diff / ∂(what the layer reads at the last position), along the direct path, [P,H,V]."""
    rows = torch.arange(len(prompts))
    with torch.enable_grad():
        change = torch.zeros_like(like).requires_grad_()
        logits = paths.logits(layer, change, rows)
        difference = logits[rows, torch.as_tensor(prompts.answer)] - logits[rows, torch.as_tensor(prompts.wrong)]
        return torch.autograd.grad(difference.sum(), change)[0]
