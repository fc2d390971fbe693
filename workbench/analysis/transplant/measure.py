"""Replace what one latent of B writes, token by token, by what another would write there, and see what B then says.

The latent's contribution, activation × decoder row, is taken out of B's forward pass; in its place comes another one:
an activation of the same token, times a direction in B's space, times one scale. Every row of a batch is one sequence
with one latent edited, so rows share forward passes without touching each other. Passes begin at the edited layer.

Arms, all on the same sequences:

    ablated      nothing in its place: the damage
    transplant   the partner's activation in A, along the partner's decoder row as mapped into B's space
    activation   the partner's activation, along the latent's own decoder row: what firing alike alone gives
    other        the partner of another latent that fires about as often: chance, fitted in the same way
    random       the latent's own activation along a random direction, of equal norm
    ceiling      the latent's best partner in another seed of B's dictionary, or the latent's own contribution sent into
                 A's space and back
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae.errors import UsageError
from workbench.activations.harvesting.forward import capture
from workbench.analysis.circuits.tail import Tail
from workbench.run import QUIET, Run

ARMS = ("ablated", "transplant", "activation", "other", "random", "ceiling")
BLOCK = 16  # sequences whose clean run is held at a time
LOGIT_BYTES = 1 << 26  # of logits made at a time

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Replacement:
    """What comes in place of a latent: ``scale`` × activation [N rows, CSC column] × direction [d_B] of length one."""

    rows: NDArray[np.int32]
    values: NDArray[np.float32]
    direction: Floats
    scale: float


@dataclass(frozen=True)
class Surgery:
    """One latent of B, what replaces it in each arm (None: nothing), and the sequences it is tried on.

    ``random``: a direction of length one for the arm of that name, which takes the latent's own activation.
    """

    latent: int
    arms: dict[str, Replacement | None]
    random: Floats
    sequences: NDArray[np.int64]


@dataclass(frozen=True)
class Sums:
    """Sums over the scored tokens of each trial. ``surgery``, ``sequence``, ``n_tokens``: [n]; ``kl``, ``nll``: arm ->
    [n], KL from the unedited model in nats, and the loss above its loss.
    """

    surgery: NDArray[np.int64]
    sequence: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    kl: dict[str, Floats]
    nll: dict[str, Floats]


def fitted(
    own: tuple[sp.csc_array, int], theirs: tuple[sp.csc_array, int], row: Floats, direction: Floats, training: Any
) -> Replacement:
    """The replacement whose scale brings it nearest to the latent's contribution over the training rows (least
    squares); never negative, so a direction that points away gives nothing.

    Args:
        own: (codes [N, F_B], latent). theirs: (codes [N, F], latent). row: [d_B] the latent's decoder row. direction:
            [d_B], length one. training: bool [N].
    """
    f, g = column(*own), column(*theirs)
    dense = np.zeros(own[0].shape[0], np.float64)
    dense[f[0]] = f[1]
    kept = training[g[0]]
    squares = float(np.square(g[1][kept], dtype=np.float64).sum())
    product = float(dense[g[0][kept]] @ g[1][kept].astype(np.float64))
    scale = max(0.0, float(row @ direction) * product / squares) if squares else 0.0
    return Replacement(g[0], g[1], direction, scale)


def column(codes: sp.csc_array, latent: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(rows, values) where a latent is active."""
    s = slice(int(codes.indptr[latent]), int(codes.indptr[latent + 1]))
    return codes.indices[s], codes.data[s]


class Downstream:
    """A block of sequences in B, run once clean, and from the edited place on for any change there.

    Args:
        read, write: hooks that the dictionary reads, and whose value it stands for.
        tokens: [S, T]. is_row: bool [S, T] tokens that the dictionary was trained on.
    """

    def __init__(self, model: Any, dictionary: Any, read: str, write: str, tokens: Tensor, is_row: Tensor):
        found = re.match(r"blocks\.(\d+)\.(.+)", write)
        if found is None or write not in model.hook_dict:
            raise UsageError(
                f"{write!r} is not inside a block of the model, and a transplant replaces latents inside one. Name"
                " dictionaries of other hooks."
            )
        layer, part = int(found[1]), found[2]
        self.tail = Tail(model, tokens)
        after = part in ("hook_resid_post", "hook_out") and layer + 1 < self.tail.n_layers
        self.start, self.hook = (layer + 1, "") if after else (layer, write)
        with torch.no_grad():
            x = capture(model, tokens, [read])[read].flatten(2)
            values, self.indices = dictionary.encode_sparse(x)
        self.values = values * is_row[..., None]
        self.clean = self.logits(torch.arange(len(tokens)), None)
        self.log_p = self.clean[:, 1:-1].float().log_softmax(-1)
        self.following = tokens[:, 2:, None]

    def activation(self, sequence: int, latent: int) -> Tensor:
        """[T] of a latent, as the dictionary reads the clean run."""
        return (self.values[sequence] * (self.indices[sequence] == latent)).sum(-1)

    def scores(self, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(KL from the clean run, loss above its loss), [n, arms, T - 2] in nats at positions 1 … T - 2, of logits
        [n, arms, T, V].
        """
        log_q, log_p = logits[:, :, 1:-1].float().log_softmax(-1), self.log_p[rows][:, None]
        at = self.following[rows][:, None].expand(-1, log_q.shape[1], -1, -1)
        added = (log_p.expand_as(log_q).gather(-1, at) - log_q.gather(-1, at))[..., 0]
        return (log_p.exp() * (log_p - log_q)).sum(-1), added

    def logits(self, rows: Tensor, change: Tensor | None) -> Tensor:
        """[R, T, V] of variants of sequences ``rows``, with ``change`` [R, T, D] added at the edited place."""
        if change is None:
            return self.tail.run(self.start, rows, every=True)
        if not self.hook:
            return self.tail.run(self.start, rows, resid=self.tail.inputs[self.start][rows] + change, every=True)
        hooks = [(self.hook, lambda value, hook: value + change.reshape(value.shape).to(value))]
        return self.tail.run(self.start, rows, hooks, every=True)


def operate(
    model: Any,
    dictionary: Any,
    hooks: tuple[str, str],
    tokens: NDArray[np.integer],
    is_row: NDArray[np.bool_],
    row_of: NDArray[np.int64],
    surgeries: Sequence[Surgery],
    *,
    run: Run = QUIET,
) -> Sums:
    """Try every surgery on its sequences.

    Args:
        hooks: (read, written). tokens: [S, T]. is_row: bool [S, T]. row_of: int [S, T], which row of the codes a token
            is (-1: none). surgeries: their ``sequences`` number rows of ``tokens``.

    Raises:
        UsageError: a place in no block of the model, or a model that is more than blocks, final norm and unembedding.
    """
    trials = sorted((int(s), k) for k, surgery in enumerate(surgeries) for s in surgery.sequences)
    at = np.array([s for s, _ in trials])
    out = Sums(
        np.array([k for _, k in trials]),
        at,
        np.zeros(len(trials), np.int64),
        {arm: np.zeros(len(trials)) for arm in ARMS},
        {arm: np.zeros(len(trials)) for arm in ARMS},
    )
    W = dictionary.W_dec.detach().double()
    with torch.no_grad(), run.bar("transplanting", len(trials), "trial") as bar:
        for block in _blocks(np.unique(at)):
            ids = torch.from_numpy(tokens[block].astype(np.int64))
            kept = torch.from_numpy(is_row[block])
            place = Downstream(model, dictionary, hooks[0], hooks[1], ids, kept)
            mine = np.flatnonzero(np.isin(at, block))
            size = ids.shape[1] * place.clean.shape[-1] * 4
            step = max(1, LOGIT_BYTES // (size * len(ARMS)))
            for lo in range(0, len(mine), step):
                some = mine[lo : lo + step]
                _some(
                    place,
                    block,
                    kept,
                    row_of,
                    W,
                    [(surgeries[out.surgery[t]], int(at[t])) for t in some],
                    some,
                    out,
                )
                bar.update(len(some))
    return out


def _blocks(sequences: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for lo in range(0, len(sequences), BLOCK):
        yield sequences[lo : lo + BLOCK]


def _some(
    place: Downstream,
    block: NDArray[np.int64],
    kept: Tensor,
    row_of: NDArray[np.int64],
    W: Tensor,
    trials: list[tuple[Surgery, int]],
    at: NDArray[np.int64],
    out: Sums,
) -> None:
    """Run all arms of a few trials, and add up what comes of them."""
    rows = torch.tensor([int(np.searchsorted(block, s)) for _, s in trials])
    change = torch.stack(
        [_changes(place, surgery, int(row), row_of[s], W) for (surgery, s), row in zip(trials, rows, strict=True)]
    )  # [trials, arms, T, D]
    many = rows.repeat_interleave(len(ARMS))
    logits = place.logits(many, change.flatten(0, 1).to(place.clean.dtype))
    scored = kept[rows, 1:-1]
    sums = [(x.double() * scored[:, None]).sum(-1) for x in place.scores(rows, logits.unflatten(0, (-1, len(ARMS))))]
    for arm, name in enumerate(ARMS):
        out.kl[name][at], out.nll[name][at] = (x[:, arm].numpy() for x in sums)
    out.n_tokens[at] = scored.sum(1).numpy()


def _changes(place: Downstream, surgery: Surgery, row: int, row_of: NDArray[np.int64], W: Tensor) -> Tensor:
    """[arms, T, D] what is added to the stream in each arm."""
    own = place.activation(row, surgery.latent).double()
    written = own[:, None] * W[surgery.latent]
    out = []
    for name in ARMS:
        if name == "random":
            put = own[:, None] * (W[surgery.latent].norm() * torch.from_numpy(surgery.random))
        else:
            new = surgery.arms.get(name)
            put = (
                torch.zeros_like(written)
                if new is None
                else _activation(new, row_of)[:, None] * torch.from_numpy(new.direction)
            )
        out.append(put - written)
    return torch.stack(out)


def _activation(new: Replacement, row_of: NDArray[np.int64]) -> Tensor:
    """[T] float64: scale × activation on the tokens of one sequence."""
    place = np.searchsorted(new.rows, row_of)
    there = (row_of >= 0) & (place < len(new.rows))
    there[there] &= new.rows[place[there]] == row_of[there]
    out = np.zeros(len(row_of))
    out[there] = new.scale * new.values[place[there]].astype(np.float64)
    return torch.from_numpy(out)
