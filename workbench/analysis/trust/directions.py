"""What the directions of a dictionary say of each latent: do encoder and decoder agree, and does another latent fire in
its place?

*Agreement*: cosine of a latent's encoder and decoder directions; chance is its encoder with the decoders of the other
latents.

*Absorbed* (Chanin et al. 2024, arXiv 2409.14507, with the latent's own decoder direction in the place of a probe): a
token on which the activation reaches as far along the latent's direction as on the median token on which it fires is
one where it should fire. It is absorbed there if it is silent and another active latent, whose decoder has a cosine of
at least ``MIN_COSINE`` with that direction, carries at least ``MIN_SHARE`` of the projection. Chance: the same with the
decoder rows of the other latents exchanged among them.

*Split*: latents whose decoder is nearer than 99.9 % of chance for directions with these second moments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from workbench.analysis.correlation import Floats, Ints
from workbench.analysis.evaluation.probing import MIN_COSINE, MIN_SHARE
from workbench.run import QUIET, Run

QUANTILE = 0.99
TAKERS = 3  # latents named that fire instead
ROUNDING = 1e-4  # of a projection: the same token gives the same one but for the order of its sums
ROWS, LATENTS = 2048, 2048  # of a block of projections

ReadRows = Callable[[slice], Tensor]


def unit(W_FD: Tensor) -> Tensor:
    """Rows of length one; rows of zero stay."""
    return W_FD / W_FD.norm(dim=1, keepdim=True).clamp_min(1e-12)


def encoder_rows(dictionary: Any) -> Tensor:
    """[F, D] what each latent reads, in units of raw activations."""
    W = dictionary.W_enc.detach().float().T
    scale = getattr(dictionary, "scale_D", None)
    return W if scale is None else W * scale


def decoder_rows(dictionary: Any) -> Tensor:
    """[F, D] what each latent writes."""
    return torch.as_tensor(dictionary.W_dec).detach().float()


def agreement(dictionary: Any) -> tuple[Floats, Floats]:
    """(cosine of encoder and decoder [F], 99 % of the cosines of each encoder with the other latents' decoders [F])."""
    encoder, decoder = unit(encoder_rows(dictionary)), unit(decoder_rows(dictionary))
    own, chance = [], []
    for start in range(0, len(encoder), LATENTS):
        cosines = encoder[start : start + LATENTS] @ decoder.T
        at = torch.arange(len(cosines))
        own.append(cosines[at, at + start].clone())
        cosines[at, at + start] = -torch.inf
        last = max(1, round((1 - QUANTILE) * (len(decoder) - 1)))
        chance.append(cosines.topk(last, dim=1).values[:, -1])
    return torch.cat(own).double().numpy(), torch.cat(chance).double().numpy()


@dataclass(frozen=True)
class Absorption:
    """Arrays [F]. ``should``: tokens on which the latent should fire (0: it never fires); ``missed``: those on which it
    is silent; ``absorbed``: those on which another latent carries its direction; ``chance``: the same by chance.
    ``takers[i]``: (latent, tokens) that fire in its place, most first.
    """

    should: Ints
    missed: Ints
    absorbed: Ints
    chance: Ints
    takers: list[list[tuple[int, int]]]


def absorption(dictionary: Any, codes: sp.csr_array, read: ReadRows, *, seed: int = 0, run: Run = QUIET) -> Absorption:
    """Where each latent is silent although its direction is there, and who fires instead.

    Args:
        codes: [N, F] of the rows. read: raw activations [n, D] of a slice of these rows.
    """
    decoder, centre = decoder_rows(dictionary), dictionary.b_dec.detach().float().reshape(-1)
    directions = unit(decoder)
    f = codes.shape[1]
    level = _usual_projection(codes, read, directions, centre)
    order = np.random.default_rng([seed, 2]).permutation(f)
    counts = np.zeros((4, f), np.int64)
    takers: list[list[tuple[int, int]]] = [[] for _ in range(f)]
    parts = [slice(a, min(a + LATENTS, f)) for a in range(0, f, LATENTS)]
    for part in run.each(parts, "absorption", unit="block"):
        found = _part(codes, read, decoder, directions, centre, level, part, order)
        counts[:, part] = found[0]
        for latent, taker, tokens in found[1]:
            if len(takers[latent]) < TAKERS:
                takers[latent].append((taker, tokens))
    return Absorption(counts[0], counts[1], counts[2], counts[3], takers)


def _usual_projection(codes: sp.csr_array, read: ReadRows, directions: Tensor, centre: Tensor) -> Tensor:
    """[F] median projection of the activation on the latent's direction where it fires; infinite where it never is."""
    values = np.empty(codes.nnz, np.float32)
    for start in range(0, codes.shape[0], ROWS):
        stop = min(start + ROWS, codes.shape[0])
        lo, hi = int(codes.indptr[start]), int(codes.indptr[stop])
        if lo == hi:
            continue
        x = read(slice(start, stop)).float() - centre
        row = torch.from_numpy(np.repeat(np.arange(stop - start), np.diff(codes.indptr[start : stop + 1])))
        latent = torch.from_numpy(codes.indices[lo:hi].astype(np.int64))
        values[lo:hi] = (x[row] * directions[latent]).sum(1).numpy()
    by_latent = sp.csc_array(sp.csr_array((values + 0.0, codes.indices, codes.indptr), shape=codes.shape))
    out = np.full(codes.shape[1], np.inf, np.float32)
    for i in np.flatnonzero(np.diff(by_latent.indptr)):
        out[i] = np.median(by_latent.data[by_latent.indptr[i] : by_latent.indptr[i + 1]])
    return torch.from_numpy(out)


def _part(
    codes: sp.csr_array,
    read: ReadRows,
    decoder: Tensor,
    directions: Tensor,
    centre: Tensor,
    level: Tensor,
    part: slice,
    order: np.ndarray,
) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """(should, missed, absorbed, by chance [4, latents of the part]; (latent, taker, tokens), most tokens first)."""
    mine = directions[part]
    shares = (decoder @ mine.T).numpy()  # [F, part] what one unit of a latent adds along each direction
    cosines = (directions @ mine.T).numpy()
    shares[cosines < MIN_COSINE] = 0
    own = np.arange(part.start, part.stop)
    shares[own, own - part.start] = 0  # a latent does not take its own place, in chance least of all
    usual = level[part]
    counts = np.zeros((4, len(mine)), np.int64)
    pairs: list[np.ndarray] = []
    for start in range(0, codes.shape[0], ROWS):
        stop = min(start + ROWS, codes.shape[0])
        block = codes[start:stop]
        x = read(slice(start, stop)).float() - centre
        along = x @ mine.T
        should = (along >= usual - ROUNDING * usual.abs()).numpy()
        fires = block[:, part].toarray() > 0
        row, latent = np.nonzero(should & ~fires)
        counts[0] += should.sum(0)
        counts[1] += np.bincount(latent, minlength=len(mine))
        limit = MIN_SHARE * np.maximum(along.numpy()[row, latent], 1e-8)
        for target, renamed in ((2, None), (3, order)):
            most, who = _strongest(block, row, latent, shares, renamed)
            taken = most >= limit
            counts[target] += np.bincount(latent[taken], minlength=len(mine))
            if renamed is None:
                pairs.append(latent[taken].astype(np.int64) * codes.shape[1] + who[taken])
    found, tokens = np.unique(np.concatenate(pairs), return_counts=True) if pairs else (np.zeros(0, int),) * 2
    best = np.argsort(-tokens, kind="stable")
    named = zip((found[best] // codes.shape[1] + part.start), found[best] % codes.shape[1], tokens[best], strict=True)
    return counts, [(int(i), int(j), int(t)) for i, j, t in named]


def _strongest(
    block: sp.csr_array, row: np.ndarray, latent: np.ndarray, shares: np.ndarray, renamed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """For pairs (row of the block, latent): the largest contribution of one active latent along the latent's direction,
    and whose it is. With ``renamed`` every active latent has another's decoder row.
    """
    first, length = block.indptr[:-1][row], np.diff(block.indptr)[row]
    width = int(np.diff(block.indptr).max(initial=0))
    most, who = np.zeros(len(row), np.float32), np.full(len(row), -1, np.int64)
    for slot in range(width):
        at = np.flatnonzero(length > slot)
        entry = first[at] + slot
        active = block.indices[entry]
        value = block.data[entry] * shares[active if renamed is None else renamed[active], latent[at]]
        better = value > most[at]
        most[at[better]], who[at[better]] = value[better], active[better]
    return most, who


def siblings(dictionary: Any, *, seed: int = 0) -> tuple[list[list[tuple[int, float]]], Ints, float]:
    """(up to ``TAKERS`` nearest (latent, cosine) of each latent beyond chance, how many are [F], that threshold)."""
    from workbench.analysis.latents.geometry import chance

    W = decoder_rows(dictionary)
    limit = chance(W, seed=seed).threshold("matched")
    directions, near, counts = unit(W), [], []
    for start in range(0, len(W), LATENTS):
        cosines = directions[start : start + LATENTS] @ directions.T
        at = torch.arange(len(cosines))
        cosines[at, at + start] = -torch.inf
        counts.append((cosines > limit).sum(1))
        values, ids = cosines.topk(min(TAKERS, len(W) - 1), dim=1)
        near += [
            [(int(j), float(v)) for j, v in zip(i, c, strict=True) if v > limit]
            for i, c in zip(ids.tolist(), values.tolist(), strict=True)
        ]
    return near, torch.cat(counts).numpy(), float(limit)
