"""Contexts of every latent at once: top, equal-mass quantiles, random positives and near misses.

Groups, each with the number of members in the data beside the stored ones:

- ``top``: the strongest token of each sequence, strongest sequences first (one context per sequence, and one per text:
  of sequences with the same 16 tokens around it only the strongest is kept, with their count in ``top_copies``);
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

from workbench.activations.read.shuffle import splitmix64
from workbench.analysis.latents.encoded import Codes

N_QUANTILES = 4
BEFORE, AFTER = 12, 4  # tokens up to and from the strongest that make two contexts the same text


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
    top_copies: np.ndarray  # [F, K] int32: sequences that show a top context's text, itself included; 0 = no context


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


def texts_around(codes: Codes) -> np.ndarray:
    """Of every row a digest of the tokens around it, uint64 [N]: equal where the text is the same."""
    span = int(codes.pos.max(initial=0)) + 1
    address = np.unique(codes.seq, return_inverse=True)[1].astype(np.int64) * (span + BEFORE + AFTER) + codes.pos
    text = np.zeros(int(address.max(initial=0)) + BEFORE + AFTER + 1, np.uint64)
    text[address + BEFORE] = codes.ids.astype(np.uint64) + np.uint64(1)
    out = np.zeros(len(address), np.uint64)
    for at in range(1, BEFORE + AFTER + 1):
        out = splitmix64(out + text[address + at] + np.uint64(0x9E3779B97F4A7C15))
    return out


def _different(entries: np.ndarray, latent: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first entry of each latent's text, how many have it); entries come in order of preference and stay so."""
    order = np.lexsort((text, latent))  # stable: the preferred entry comes first
    new = np.ones(len(order), bool)
    new[1:] = (latent[order][1:] != latent[order][:-1]) | (text[order][1:] != text[order][:-1])
    starts = np.flatnonzero(new)
    first, copies = order[starts], np.diff(np.append(starts, len(order)))
    back = np.argsort(first)
    return entries[first[back]], copies[back]


def choose(
    codes: Codes, near: NearMisses | None, k: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Members of every group: parallel arrays latent, group, slot, row, the availability table group_n [F, G], and how
    many sequences show each top context's text [F, K].
    """
    f, latent, n_groups = codes.n_latents, codes.latent, N_QUANTILES + 3
    group_n = np.zeros((f, n_groups), np.int64)
    parts = []

    best = _strongest_per_sequence(codes)
    group_n[:, 0] = np.bincount(latent[best], minlength=f)
    strongest = best[_group_order(latent[best], -codes.value[best])]
    text = texts_around(codes)
    different, copies = _different(strongest, latent[strongest], text[codes.row[strongest]])
    slot = _slots(latent[different])
    entry, copies, slot = different[slot < k], copies[slot < k], slot[slot < k]
    parts.append((latent[entry], np.zeros(len(entry), np.int64), slot, codes.row[entry]))
    top_copies = np.zeros((f, k), np.int32)
    top_copies[latent[entry], slot] = copies

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
    return joined[0], joined[1], joined[2], joined[3], group_n, top_copies


def build(codes: Codes, near: NearMisses | None, *, k: int = 20, window: int = 64, seed: int = 0) -> Contexts:
    """Choose the members of all groups and cut their windows (see the module docstring).

    Args:
        k: contexts per group. window: tokens of a window; about two thirds of it lie before the token it was cut for.
    """
    latent, group, slot, row, group_n, top_copies = choose(codes, near, k, np.random.default_rng(seed))
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
        top_copies=top_copies,
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
