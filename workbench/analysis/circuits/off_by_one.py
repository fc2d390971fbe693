"""Where a Mamba writes what it will need: the effect of the write at one position, by offset from the token written
about.

Off-by-one test of Towards Universality (arXiv 2410.06672, section 6.2): the last state is recomputed with the write
terms (Ā_p, B̄_p x_p) of one position p taken from the run in which token B was changed. All other layers' states stay
clean. Offset = p - position of B; the paper's mamba-130m peaks at +1. Where a model peaks is its own: found here, never
assumed.

By linearity of h_t = Ā_t h_{t-1} + w_t, with ' for the corrupted run and everything else clean,

    Δh_{T-1} = exp(A Σ_{k=p+1}^{T-1} Δ_k) · [(Ā'_p - Ā_p) h_{p-1} + (w'_p - w_p)].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.analysis.circuits.effects import METRICS
from workbench.analysis.circuits.heads import Effects, measure
from workbench.analysis.circuits.paths import FrozenPaths, Path, collect, mixed_input
from workbench.analysis.circuits.states import decay_rates, mixer_of, y_to_resid
from workbench.analysis.circuits.tasks import PromptSet


class WriteTerms:
    """What one layer's state is made of, at O positions [P,O] of P prompts, in the clean and the corrupted run."""

    def __init__(self, model: Any, layer: int, positions: Tensor, clean: dict[str, Tensor], corrupt: dict[str, Tensor]):
        self.model, self.layer, self.positions = model, layer, positions
        self.A = decay_rates(model, layer)
        self._clean, self._corrupt, self._hook = clean, corrupt, f"blocks.{layer}.mixer."
        self._before = clean[self._hook + "hook_h"] * (positions > 0)[..., None, None]  # h_{p-1} [P,O,D,N]
        dt = clean[self._hook + "hook_dt"]
        passed = dt.sum(1, keepdim=True) - dt.cumsum(1)  # Σ_{k>p} Δ_k
        self._survival = torch.exp(self.A * self._at(passed)[..., None])

    def _at(self, v: Tensor) -> Tensor:
        """[P,T,...] at the chosen positions: [P,O,...]."""
        return v[torch.arange(len(v))[:, None], self.positions.clamp_min(0)]

    def clean(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, Δ, B at the positions, [P,O,D], [P,O,D], [P,O,N]."""
        return tuple(self._at(self._clean[self._hook + f"hook_{k}"]) for k in ("x", "dt", "B"))  # type: ignore[return-value]

    def corrupted(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same in the corrupted run."""
        return tuple(self._at(self._corrupt[self._hook + f"hook_{k}"]) for k in ("x", "dt", "B"))  # type: ignore[return-value]

    def with_tap(self, tap: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same, if the convolution's input `tap` positions back (0 = the position itself) alone were corrupted."""
        mixer, u, new = (
            mixer_of(self.model, self.layer),
            self._clean[self._hook + "conv1d.hook_in"],
            self._corrupt[self._hook + "conv1d.hook_in"],
        )
        width = mixer.conv_kernel_size
        length = u.shape[-1]
        padded = torch.nn.functional.pad(u, (width - 1, 0))
        out = torch.nn.functional.conv1d(padded, mixer.conv1d.weight, mixer.conv1d.bias, groups=u.shape[1])
        shifted = torch.nn.functional.pad(new - u, (tap, 0))[..., :length]
        changed = out + mixer.conv1d.weight[:, 0, width - 1 - tap, None] * shifted
        return mixed_input(mixer, self._at(changed.transpose(1, 2)))[:3]

    def state_change(self, new: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Change of the last state [P,O,D,N] when the write at each position, alone, is made of `new` x, Δ, B."""
        x, dt, B = self.clean()
        x_new, dt_new, B_new = new
        write = (dt_new * x_new)[..., None] * B_new[..., None, :] - (dt * x)[..., None] * B[..., None, :]
        decay = torch.exp(dt_new[..., None] * self.A) - torch.exp(dt[..., None] * self.A)
        return self._survival * (decay * self._before + write)

    def y_change(self, state: Tensor) -> Tensor:
        """Change of y at the last position [P,O,D]."""
        return torch.einsum("podn,pn->pod", state, self._clean[self._hook + "hook_C"])

    def last(self, name: str) -> Tensor:
        """C [P,N] or gate [P,D] at the last position."""
        return self._clean[self._hook + f"hook_{name}"]

    def resid_change(self, y: Tensor) -> Tensor:
        """What a change of y [P,O,D] adds to the residual stream [P,O,d_model]."""
        return y_to_resid(self.model, self.layer, y, self._clean[self._hook + "hook_gate"][:, None])


@dataclass(frozen=True)
class ChannelEffects:
    """Channels of one layer's write at one position, for the logit difference.

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
    """Effect of corrupting the write at each labelled position (`B`, `B+1`, …), layer by layer: [P,L,len(labels)]."""
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

    Each tap starts from the clean window, so effects are of single taps and not cumulative; they need not add up.
    """
    return _profile(model, prompts, paths, labels, path, metrics, range(mixer_of(model, 0).conv_kernel_size))


def write_terms(model: Any, prompts: PromptSet, labels: Sequence[str]) -> list[WriteTerms]:
    """The write terms of every layer at the labelled positions, from one clean and one corrupted run."""
    positions = torch.as_tensor(np.stack([prompts.position(label) for label in labels], 1))
    before = (positions - 1).clamp_min(0)
    small: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for l in range(len(model.blocks)):
        hook = f"blocks.{l}.mixer."
        small |= dict.fromkeys(
            [hook + f"hook_{k}" for k in ("x", "dt", "B")] + [hook + "conv1d.hook_in"], lambda v, rows: v
        )
        extra |= dict.fromkeys([hook + "hook_C", hook + "hook_gate"], lambda v, rows: v[:, -1])
        extra[hook + "hook_h"] = lambda v, rows: v[torch.arange(len(v))[:, None], before[rows]]
    clean, corrupt = collect(model, prompts.clean, small | extra), collect(model, prompts.corrupt, small)
    return [WriteTerms(model, l, positions, clean, corrupt) for l in range(len(model.blocks))]


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
        new = [terms.corrupted() if tap is None else terms.with_tap(tap) for tap in taps]
        change = torch.stack([terms.resid_change(terms.y_change(terms.state_change(values))) for values in new], 2)
        rows.append((terms.layer, change.flatten(0, 2), index))
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
    terms = write_terms(model, prompts, [label])[layer]
    states = terms.state_change(terms.corrupted())[:, 0]  # [P,D,N]
    per_state = states * terms.last("C")[:, None, :]
    change = per_state.sum(-1)  # Δy [P,D]
    slope = _slope(model, prompts, paths, layer)
    mixer = mixer_of(model, layer)
    to_metric = (slope @ mixer.out_proj.weight) * mixer.act(terms.last("gate"))  # ∂ logit_diff / ∂y [P,D]
    channels = to_metric * change
    order = channels.mean(0).abs().argsort(descending=True)
    sizes = [k for k in sizes if k < len(order)] + [len(order)]
    kept = torch.stack([torch.zeros(len(order)).index_fill(0, order[:k], 1.0) for k in sizes])  # [S,D]
    delta = terms.resid_change(change[:, None] * kept)
    index = torch.arange(len(prompts)).repeat_interleave(len(sizes))
    exact = measure(paths, prompts, [(layer, delta.flatten(0, 1), index)], "direct", ("logit_diff",))[0]["logit_diff"]
    return ChannelEffects(
        layer,
        label,
        channels.numpy(),
        (to_metric[..., None] * per_state).numpy(),
        tuple(sizes),
        exact.reshape(len(prompts), -1),
        order.numpy(),
    )


def _slope(model: Any, prompts: PromptSet, paths: FrozenPaths, layer: int) -> Tensor:
    """∂ logit_diff / ∂(mixer output at the last position), along the direct path, [P,d_model]."""
    rows = torch.arange(len(prompts))
    with torch.enable_grad():
        delta = torch.zeros_like(paths.final[:, -1]).requires_grad_()
        logits = paths.logits(layer, delta, rows)
        difference = logits[rows, torch.as_tensor(prompts.answer)] - logits[rows, torch.as_tensor(prompts.wrong)]
        return torch.autograd.grad(difference.sum(), delta)[0]
