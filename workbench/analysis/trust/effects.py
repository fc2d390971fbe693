"""What a latent does to the loss where it fires: ablation of many latents in one forward pass, checked against ablation
one at a time.

A latent is set to zero at one token, through :func:`~workbench.analysis.splice.splice` with the reconstruction error
kept, and the loss of the next ``WINDOW`` predictions is compared with the untouched model's. In one pass over a
sequence several latents are ablated at tokens at least ``GAP`` apart, so that no window holds two of them; what an
earlier one does from further back is noise in a later one's number, and a sample is ablated alone to say how much: the
correlation of both, with its n, is part of the result. (Attribution by the gradient would be cheaper. Measured on the
bundled models its correlation with ablation is 0.2: a latent is no small change.)

The unit is nats, summed over the window, per token on which the latent fires; positive: the loss rises without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.correlation import Floats, Ints
from workbench.analysis.splice import splice
from workbench.run import QUIET, Run
from workbench.stats import Estimate, interval95

BATCH = 16  # sequences of a pass
WINDOW, GAP = 8, 16  # predictions a number is over, and tokens between two ablations of a pass
PEERS = 20  # latents of like frequency and magnitude that an effect is held against
LATENTS_ALONE, TOKENS_ALONE = 96, 4  # latents that are also ablated alone, and on how many tokens each
RESAMPLES = 500


@dataclass(frozen=True)
class Effects:
    """Arrays [F]: means over the ``n`` ablated tokens of each latent (NaN where n is 0) with a bootstrap interval over
    them, one token per sequence as far as it fires in so many. ``size``: mean length of what is taken away;
    ``fired``: tokens on which it fires and a prediction follows.

    ``alone`` [F] is NaN but for a sample: the mean over ``alone_n`` of these tokens with nothing else ablated;
    ``agreement``: Pearson's r of both over all (latent, token) pairs of the sample.
    """

    mean: Floats
    low: Floats
    high: Floats
    n: Ints
    size: Floats
    fired: Ints
    alone: Floats
    alone_n: Ints
    agreement: Estimate


@dataclass(frozen=True)
class Firings:
    """One per (token, active latent): parallel arrays. ``size``: length of what the latent writes there."""

    seq: Ints
    pos: Ints
    latent: Ints
    size: Floats

    def of(self, chosen: Ints) -> Firings:
        """Some of them."""
        return Firings(self.seq[chosen], self.pos[chosen], self.latent[chosen], self.size[chosen])


def ablation_effects(
    model: Any,
    dictionary: Any,
    hook: str,
    tokens: np.ndarray,
    rows: np.ndarray,
    *,
    latents: Ints | None = None,
    ablations: int = 32,
    seed: int = 0,
    run: Run = QUIET,
) -> Effects:
    """Effects of latents (all by default) that fire at all, on at most ``ablations`` tokens each.

    Args:
        tokens: [S, ctx]. rows: bool [S, ctx], tokens that are data: only there latents are ablated and predictions
            scored.

    Raises:
        UsageError: ``ablations`` is not positive.
    """
    if ablations < 1:
        raise UsageError(f"--ablations {ablations} is not positive. Give 1 or more.")
    ids, keep = torch.as_tensor(np.asarray(tokens, np.int64)), torch.as_tensor(rows).clone()
    keep[:, 0] = False
    clean, firings = _clean(model, dictionary, hook, ids, keep, run)
    f, rng = int(dictionary.W_dec.shape[0]), np.random.default_rng([seed, 3])
    fired = np.bincount(firings.latent, minlength=f)
    wanted = np.arange(f) if latents is None else latents
    chosen = firings.of(_spread(firings, wanted, ablations, rng))
    passes = packed(chosen.seq, chosen.pos)
    effect = _ablated(model, dictionary, hook, ids, keep, clean, chosen, passes, "ablations", run)
    sample = _alone(chosen, rng)
    by_itself = [np.array([i]) for i in sample]
    alone = _ablated(model, dictionary, hook, ids, keep, clean, chosen, by_itself, "ablations one at a time", run)
    n, alone_n = (np.bincount(latents, minlength=f) for latents in (chosen.latent, chosen.latent[sample]))
    with np.errstate(invalid="ignore"):
        mean = np.bincount(chosen.latent, effect, minlength=f) / n
        size = np.bincount(firings.latent, firings.size, minlength=f) / fired
        alone_mean = np.bincount(chosen.latent[sample], alone[sample], minlength=f) / alone_n
    low, high = _intervals(chosen.latent, effect, f, rng)
    return Effects(mean, low, high, n, size, fired, alone_mean, alone_n, _agreement(effect[sample], alone[sample]))


def losses(model: Any, ids: Tensor, keep: Tensor) -> Tensor:
    """[S, ctx - 1] loss in nats of the next token at every position; 0 where the position is not data."""
    logits = model(ids, return_type="logits")[:, :-1].float()
    flat = nnf.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return flat.unflatten(0, (len(ids), -1)) * keep[:, :-1]


@torch.no_grad()
def _clean(model: Any, dictionary: Any, hook: str, ids: Tensor, keep: Tensor, run: Run) -> tuple[Tensor, Firings]:
    """(losses of the untouched model [S, ctx - 1], where which latent fires)."""
    found: list[list[np.ndarray]] = []
    clean = []
    lengths = dictionary.W_dec.detach().float().norm(dim=1)
    scored = keep.clone()
    scored[:, -1] = False  # nothing is predicted from the last token on
    for start in run.each(range(0, len(ids), BATCH), "firings", unit="batch"):
        part = slice(start, start + BATCH)
        caught: list[Tensor] = []
        with model.hooks(fwd_hooks=[(hook, lambda x, hook, caught=caught: caught.append(x.flatten(2)))]):
            clean.append(losses(model, ids[part], keep[part]))
        values, indices = dictionary.encode_sparse(caught[0])
        b, t, k = ((values > 0) & scored[part][..., None]).nonzero(as_tuple=True)
        latent = indices[b, t, k]
        size = values[b, t, k].float() * lengths[latent]
        found.append([(b + start).numpy(), t.numpy(), latent.long().numpy(), size.double().numpy()])
    return torch.cat(clean), Firings(*(np.concatenate(x) for x in zip(*found, strict=True)))


def _ranks(sorted_keys: np.ndarray) -> Ints:
    """0, 1, 2, … inside every run of equal keys."""
    return np.arange(len(sorted_keys)) - np.searchsorted(sorted_keys, sorted_keys)


def _spread(firings: Firings, latents: Ints, most: int, rng: np.random.Generator) -> Ints:
    """At most ``most`` firings of each of some latents, at random, from as many sequences as there are."""
    order = rng.permutation(np.flatnonzero(np.isin(firings.latent, latents)))
    cell = firings.latent[order] * (int(firings.seq.max(initial=0)) + 1) + firings.seq[order]
    by_cell = np.argsort(cell, kind="stable")
    again = np.empty(len(order), np.int64)  # how many of the same latent and sequence come before
    again[by_cell] = _ranks(cell[by_cell])
    order = order[np.lexsort((again, firings.latent[order]))]
    return order[_ranks(firings.latent[order]) < most]


def packed(seq: Ints, pos: Ints) -> list[Ints]:
    """Entries that are ablated together: of one sequence, at least ``GAP`` tokens apart, in as few passes as there can
    be.
    """
    passes: list[list[int]] = []
    open_: list[int] = []  # passes of the sequence at hand
    current = -1
    for i in np.lexsort((pos, seq)).tolist():
        if seq[i] != current:
            current, open_ = int(seq[i]), []
        place = next((p for p in open_ if pos[i] - pos[passes[p][-1]] >= GAP), None)
        if place is None:
            place = len(passes)
            open_.append(place)
            passes.append([])
        passes[place].append(i)
    return [np.array(p) for p in passes]


@torch.no_grad()
def _ablated(
    model: Any,
    dictionary: Any,
    hook: str,
    ids: Tensor,
    keep: Tensor,
    clean: Tensor,
    entries: Firings,
    passes: list[Ints],
    label: str,
    run: Run,
) -> Floats:
    """Per entry the change of the loss in its window; those of one pass are ablated together. NaN where in no pass."""
    out = np.full(len(entries.seq), np.nan)
    for start in run.each(range(0, len(passes), BATCH), label, unit="batch"):
        group = passes[start : start + BATCH]
        which = np.concatenate(group)
        row = np.repeat(np.arange(len(group)), [len(p) for p in group])
        seq = torch.from_numpy(entries.seq[[p[0] for p in group]])
        at = tuple(torch.from_numpy(a) for a in (row, entries.pos[which], entries.latent[which]))

        def zero(codes: Tensor, name: str, at: tuple[Tensor, ...] = at) -> Tensor:
            changed = codes.clone()
            changed[at] = 0.0
            return changed

        with splice(model, {hook: dictionary}, zero, keep_error=True):
            after = losses(model, ids[seq], keep[seq])
        moved = np.cumsum((after - clean[seq]).double().numpy(), axis=1)
        moved = np.concatenate([np.zeros((len(group), 1)), moved], axis=1)
        last = np.minimum(entries.pos[which] + WINDOW, moved.shape[1] - 1)
        out[which] = moved[row, last] - moved[row, entries.pos[which]]
    return out


def _alone(chosen: Firings, rng: np.random.Generator) -> Ints:
    """Entries that are ablated alone as well: some of each of some latents."""
    latents = rng.permutation(np.unique(chosen.latent))[:LATENTS_ALONE]
    order = rng.permutation(np.flatnonzero(np.isin(chosen.latent, latents)))
    order = order[np.argsort(chosen.latent[order], kind="stable")]
    return order[_ranks(chosen.latent[order]) < TOKENS_ALONE]


def _intervals(latent: Ints, effect: Floats, f: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """95 % bootstrap interval over ablated tokens of each latent's mean; NaN where there are fewer than two."""
    low, high = np.full(f, np.nan), np.full(f, np.nan)
    order = np.argsort(latent, kind="stable")
    edges = np.searchsorted(latent[order], np.arange(f + 1))
    for i in np.flatnonzero(np.diff(edges) > 1):
        values = effect[order[edges[i] : edges[i + 1]]]
        low[i], high[i] = interval95(values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1))
    return low, high


def _agreement(together: Floats, alone: Floats) -> Estimate:
    """Pearson's r with Fisher's interval."""
    n = len(together)
    if n < 4 or not np.ptp(together) or not np.ptp(alone):
        return Estimate(float("nan"), None, None, n, "ablated tokens", "none")
    r = float(np.corrcoef(together, alone)[0, 1])
    z, spread = np.arctanh(np.clip(r, -0.999999, 0.999999)), 1.96 / np.sqrt(n - 3)
    return Estimate(r, float(np.tanh(z - spread)), float(np.tanh(z + spread)), n, "ablated tokens", "Fisher, 95 %")


def against_peers(effects: Effects) -> tuple[Floats, Floats, Ints]:
    """(median effect of the ``PEERS`` latents of like frequency and magnitude, share of them whose effect is smaller,
    how many they are), arrays [F]; NaN where a latent was not ablated.
    """
    from scipy.spatial import cKDTree

    f = len(effects.mean)
    median, rank, n = np.full(f, np.nan), np.full(f, np.nan), np.zeros(f, np.int64)
    known = np.flatnonzero(effects.n > 0)
    if len(known) < 2:
        return median, rank, n
    place = np.stack([np.log(effects.fired[known]), np.log(np.maximum(effects.size[known], 1e-12))], 1)
    place = (place - place.mean(0)) / np.maximum(place.std(0), 1e-12)
    near = cKDTree(place).query(place, k=min(PEERS + 1, len(known)))[1]
    for row, i in enumerate(known):
        others = known[near[row][near[row] != row]][:PEERS]
        median[i], n[i] = np.median(effects.mean[others]), len(others)
        rank[i] = float((effects.mean[others] < effects.mean[i]).mean())
    return median, rank, n
