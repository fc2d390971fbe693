"""Contexts of every latent at once: top, equal-mass quantiles, random positives and near misses.

Groups, each with the number of members in the data beside the stored ones:

- ``top``: the strongest token of each sequence, strongest sequences first (one context per sequence);
- ``q1`` … ``q4``: positive tokens split by rank of their activation into four equal parts, q4 the strongest; a random
  sample of each;
- ``random``: a random sample of all positive tokens;
- ``near_miss``: not-active tokens with the highest pre-activation, one per sequence; their stored value is 0.

Windows of text start on a coarse grid, so latents and groups share them and each is stored once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from workbench.analysis.latents.encoded import Codes

N_QUANTILES = 4


@dataclass(frozen=True)
class Contexts:
    """Arrays of the records format; see :data:`workbench.results.records.ARRAYS`."""

    contexts_tok: np.ndarray  # [C, T] int32
    contexts_seq: np.ndarray  # [C, 2] int32
    group_ctx: np.ndarray  # [F, G, K, 2] int32
    group_n: np.ndarray  # [F, G] int64
    act_indptr: np.ndarray  # [F * G * K + 1] int64
    act_pos: np.ndarray  # [N] uint16
    act_val: np.ndarray  # [N] float32


class NearMisses:
    """Highest pre-activations among not-active tokens, kept per latent while blocks of rows stream by.

    Only pre-activations above the worst one kept so far are looked at, so after the first blocks nearly all cost is one
    comparison per value. ``spare`` times more candidates than needed are kept, because one sequence counts once.
    """

    def __init__(self, n_latents: int, n: int, *, spare: int = 2):
        self.value = torch.full((n_latents, n * spare), -torch.inf)
        self.row = torch.full((n_latents, n * spare), -1, dtype=torch.int64)

    def add(self, first_row: int, pre: torch.Tensor, values: torch.Tensor, indices: torch.Tensor) -> None:
        """A block: pre-activations [B, F] (overwritten), and the active codes (values, indices [B, k])."""
        pre = pre.detach()
        at_row, at = (values > 0).nonzero(as_tuple=True)
        pre[at_row, indices[at_row, at].long()] = -torch.inf
        f, keep = self.value.shape
        if bool((self.row < 0).all()):
            top = pre.topk(min(keep, len(pre)), dim=0)
            new_value, new_row, latent = (
                top.values.T.reshape(-1),
                top.indices.T.reshape(-1),
                torch.arange(f).repeat_interleave(top.indices.shape[0]),
            )
        else:
            new_row, latent = (pre > self.value[:, -1]).nonzero(as_tuple=True)
            new_value = pre[new_row, latent]
        touched, compact = torch.unique(latent, return_inverse=True)
        value = torch.cat([self.value[touched].reshape(-1), new_value])
        row = torch.cat([self.row[touched].reshape(-1), new_row + first_row])
        owner = torch.cat([torch.arange(len(touched)).repeat_interleave(keep), compact])
        order = _group_order(owner.numpy(), -value.numpy())
        owner_sorted = owner.numpy()[order]
        slot = _slots(owner_sorted)
        inside = torch.from_numpy(order[slot < keep])
        self.value[touched] = value[inside].reshape(-1, keep)
        self.row[touched] = row[inside].reshape(-1, keep)

    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """(latent, row) of the candidates, per latent from the highest pre-activation down."""
        found = (self.row >= 0) & torch.isfinite(self.value)
        latent = found.nonzero()[:, 0]
        return latent.numpy(), self.row[found].numpy()


def _group_order(group: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Order by group, then by ascending float32 key: one integer sort instead of two."""
    bits = np.ascontiguousarray(key, dtype=np.float32).view(np.int32).astype(np.int64)
    ascending = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits) + (1 << 31)  # order-preserving image of a float
    return np.argsort((group.astype(np.int64) << 32) + ascending, kind="stable")


def _slots(group_sorted: np.ndarray) -> np.ndarray:
    """0, 1, 2, … inside every run of equal values."""
    n = len(group_sorted)
    index = np.arange(n)
    new = np.ones(n, bool)
    new[1:] = group_sorted[1:] != group_sorted[:-1]
    return index - np.maximum.accumulate(np.where(new, index, 0))


def _strongest_per_sequence(codes: Codes) -> np.ndarray:
    """Entries that are their latent's strongest in their sequence (the first of equal ones)."""
    if len(codes.row) == 0:
        return np.zeros(0, np.int64)
    seq = codes.seq[codes.row]
    new = np.ones(len(seq), bool)
    new[1:] = (seq[1:] != seq[:-1]) | (codes.latent[1:] != codes.latent[:-1])
    starts = np.flatnonzero(new)
    run = np.cumsum(new) - 1
    hits = np.flatnonzero(codes.value == np.maximum.reduceat(codes.value, starts)[run])
    return hits[np.unique(run[hits], return_index=True)[1]]


def _pick(member: np.ndarray, latent: np.ndarray, key: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(member, slot) of the k members with the smallest key of each latent."""
    order = _group_order(latent, key)
    slot = _slots(latent[order])
    keep = slot < k
    return member[order[keep]], slot[keep]


def choose(
    codes: Codes, near: NearMisses | None, k: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Members of every group: parallel arrays latent, group, slot, row, and the availability table group_n [F, G]."""
    f, latent, n_groups = codes.n_latents, codes.latent, N_QUANTILES + 3
    group_n = np.zeros((f, n_groups), np.int64)
    parts = []

    best = _strongest_per_sequence(codes)
    group_n[:, 0] = np.bincount(latent[best], minlength=f)
    entry, slot = _pick(best, latent[best], -codes.value[best], k)
    parts.append((latent[entry], np.zeros(len(entry), np.int64), slot, codes.row[entry]))

    entries = np.arange(len(codes.row))
    order = _group_order(latent, codes.value)
    quantile = np.empty(len(order), np.int64)
    quantile[order] = np.minimum(
        _slots(latent[order]) * N_QUANTILES // np.maximum(codes.n_fired[latent[order]], 1), N_QUANTILES - 1
    )
    cell = latent.astype(np.int64) * N_QUANTILES + quantile
    group_n[:, 1 : 1 + N_QUANTILES] = np.bincount(cell, minlength=f * N_QUANTILES).reshape(f, N_QUANTILES)
    entry, slot = _pick(entries, cell, rng.random(len(entries), dtype=np.float32), k)
    parts.append((latent[entry], 1 + quantile[entry], slot, codes.row[entry]))

    group_n[:, -2] = codes.n_fired
    entry, slot = _pick(entries, latent, rng.random(len(entries), dtype=np.float32), k)
    parts.append((latent[entry], np.full(len(entry), n_groups - 2), slot, codes.row[entry]))

    group_n[:, -1] = codes.n_tokens - codes.n_fired
    if near is not None:
        who, row = near.entries()
        once = who.astype(np.int64) * (int(codes.seq.max()) + 1) + codes.seq[row]
        first = np.sort(np.unique(once, return_index=True)[1])
        slot = _slots(who[first])
        first, slot = first[slot < k], slot[slot < k]
        parts.append((who[first], np.full(len(first), n_groups - 1), slot, row[first]))
    joined = [np.concatenate([p[i] for p in parts]).astype(np.int64) for i in range(4)]
    return joined[0], joined[1], joined[2], joined[3], group_n


def build(codes: Codes, near: NearMisses | None, *, k: int = 20, window: int = 64, seed: int = 0) -> Contexts:
    """Choose the members of all groups and cut their windows (see the module docstring).

    Args:
        k: contexts per group. window: tokens of a window; about two thirds of it lie before the token it was cut for.
    """
    latent, group, slot, row, group_n = choose(codes, near, k, np.random.default_rng(seed))
    f, n_groups = group_n.shape
    sequences, seq_of_row = np.unique(codes.seq, return_inverse=True)
    span = int(codes.pos.max()) + 1
    window = min(window, span)
    stride = max(1, window // 4)
    start = np.clip((codes.pos[row].astype(np.int64) - (5 * window) // 8) // stride * stride, 0, max(0, span - window))
    cut = seq_of_row[row].astype(np.int64) * span + start
    windows, which = np.unique(cut, return_inverse=True)

    text = np.full(len(sequences) * span + window, -1, np.int32)
    address = seq_of_row.astype(np.int64) * span + codes.pos  # of each row, ascending
    text[address] = codes.ids
    group_ctx = np.full((f, n_groups, k, 2), -1, np.int32)
    group_ctx[latent, group, slot, 0] = which
    group_ctx[latent, group, slot, 1] = codes.pos[row] - start
    indptr, at, value = _window_codes(
        codes,
        address,
        len(sequences) * span,
        latent,
        cut,
        window,
        (latent * n_groups + group) * k + slot,
        f * n_groups * k,
    )
    return Contexts(
        contexts_tok=text[windows[:, None] + np.arange(window)],
        contexts_seq=np.stack([sequences[windows // span], windows % span], axis=1).astype(np.int32),
        group_ctx=group_ctx,
        group_n=group_n,
        act_indptr=indptr,
        act_pos=at.astype(np.uint16),
        act_val=value,
    )


def _window_codes(
    codes: Codes,
    address: np.ndarray,
    size: int,
    latent: np.ndarray,
    cut: np.ndarray,
    window: int,
    cell: np.ndarray,
    n_cells: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CSR over cells of the latent's own entries inside each window: two binary searches per window,
    then one gather.
    """
    place = codes.latent.astype(np.int64) * size + address[codes.row]  # ascending, as entries are latent-major
    order = np.argsort(cell)
    left = latent[order] * size + cut[order]
    low, high = np.searchsorted(place, left), np.searchsorted(place, left + window)
    counts = np.zeros(n_cells, np.int64)
    counts[cell[order]] = high - low
    indptr = np.concatenate([[0], np.cumsum(counts)])
    length = high - low
    flat = np.repeat(low - (np.cumsum(length) - length), length) + np.arange(length.sum())
    return indptr, place[flat] - np.repeat(left, length), codes.value[flat]
