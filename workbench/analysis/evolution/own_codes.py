"""How a latent shows at each source by that source alone: no decoder norm, no code that sources share.

A crosscoder's decoder norm at a source says how much of it the *shared* code predicts, and the shared code comes from
all sources: a latent has a norm at a snapshot that does not have it, where something else of the same tokens is there.
Here every source speaks for itself. Its *reading* of a latent is its own part of the pre-activation, and its *own
firings* are the n rows with the largest readings, n being how often the latent fires in the shared code; only the
order of readings counts, so neither scale nor threshold does.

- *agreement*: share of the own firings that are own firings of the other models' last sources too (the sum of their
  standardised readings), above chance n / N, as a share of what is possible. Nothing in it is shared: the rows a model
  finds by itself are held against those another model finds by itself.
- *explained*: share of the source's variance that the latent's direction explains on the rows where the other models
  find it, of what the other latents leave over. (On a source's own firings every direction explains something: they are
  chosen for being large along it.)

Axes: N rows, S sources, F latents, D width of a source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from crosscoders import Crosscoder
from workbench.analysis.evolution.rows import to_csr

Floats = npt.NDArray[np.float32]
MOST_ROWS = 32_768
MEMORY = 600 * 2**20  # bytes of raw rows and what is left of them


@dataclass(frozen=True)
class OwnCodes:
    """``agreement`` and ``explained`` [S, F] (NaN: the latent does not fire); ``n_fired`` [F] in ``n_rows`` rows."""

    agreement: Floats
    explained: Floats
    n_fired: npt.NDArray[np.int64]
    n_rows: int


@dataclass(frozen=True)
class Firings:
    """The n_i rows [f, k] of largest reading of every latent, best first; ``inside``: which of the k count."""

    rows: Tensor
    inside: Tensor


def by_size(n_F: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Latents that fire, in groups of about equal n: each group costs what its largest n does."""
    alive = np.flatnonzero(n_F > 0)
    octave = np.log2(n_F[alive]).astype(int)
    return [alive[octave == o] for o in np.unique(octave)]


def own_firings(reading_FN: Tensor, n_F: Tensor) -> Firings:
    """The rows of the n_F largest readings of each latent [f, N]."""
    k = int(n_F.max())
    rows = reading_FN.topk(k, dim=1).indices
    return Firings(rows, torch.arange(k)[None, :] < n_F[:, None])


def _standard(x: Tensor) -> Tensor:
    """Readings [f, N] with mean 0 and spread 1; constant ones are 0."""
    spread = x.std(1, keepdim=True)
    return (x - x.mean(1, keepdim=True)) / torch.where(spread > 0, spread, torch.ones_like(spread))


@torch.no_grad()
def own_codes(cc: Crosscoder, batches: Iterable[Tensor], last: Sequence[Sequence[int]]) -> OwnCodes:
    """Agreement and explained variance of every latent at every source.

    Args:
        cc: a folded crosscoder. batches: raw rows [B, sum(D)]; as many are used as fit into :data:`MEMORY`.
        last: for every source, the last sources of the *other* models, by whose firings it is judged.
    """
    x, left, codes = _collected(cc, batches)
    N, F, S = len(x[0]), cc.d_sae, len(cc.widths)
    n_F = np.diff(codes[0].indptr).astype(np.int64)
    agreement, explained = np.full((S, F), np.nan, np.float32), np.full((S, F), np.nan, np.float32)
    encoders = cc.enc_FD.split(cc.widths, 1)
    blocks = cc.dec_FD.split(cc.widths, 1)
    for group in by_size(n_F):
        at = torch.from_numpy(group)
        n = torch.from_numpy(n_F[group])

        def reading(s: int, at: Tensor = at) -> Tensor:
            return encoders[s][at] @ x[s].t()

        finished = {s: _standard(reading(s)) for s in sorted({s for others in last for s in others})}
        judges: dict[tuple[int, ...], tuple[Firings, Tensor]] = {}
        for s in range(S):
            others = tuple(last[s])
            if others not in judges:
                found = own_firings(torch.stack([finished[o] for o in others]).sum(0), n)
                there = torch.zeros(len(group), N, dtype=torch.bool)
                judges[others] = found, there.scatter_(1, found.rows, found.inside)
            theirs, there = judges[others]
            own = own_firings(reading(s), n)
            hits = (there.gather(1, own.rows) & own.inside).sum(1)
            chance = n / N
            agreement[s, group] = ((hits / n - chance) / (1 - chance).clamp_min(1 / N)).numpy()
            explained[s, group] = _explained(theirs, codes[s], group, left[s], x[s], blocks[s][at], n)
    return OwnCodes(agreement, explained, n_F, N)


def _collected(cc: Crosscoder, batches: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor], list[sparse.csc_array]]:
    """Of every source: raw rows [N, D], what the reconstruction leaves of them, and what of the codes reaches it."""
    most = max(1, min(MOST_ROWS, MEMORY // (8 * cc.d_in)))
    rows, left, parts, n = [], [], [], 0
    for batch in batches:
        x = batch[: most - n]
        y, values, indices = cc.reconstructed_by_source(x)
        rows.append(x)
        left.append(x - y)
        shared = all(v is values[0] for v in values)
        one = to_csr(values[0], indices, cc.d_sae)
        parts.append([one] * len(values) if shared else [to_csr(v, indices, cc.d_sae) for v in values])
        n += len(x)
        if n >= most:
            break
    codes = [sparse.csc_array(sparse.vstack(of_source)) for of_source in zip(*parts, strict=True)]
    return list(cc.split(torch.cat(rows))), list(cc.split(torch.cat(left))), codes


def _explained(
    at: Firings, codes: sparse.csc_array, group: np.ndarray, left: Tensor, x: Tensor, block: Tensor, n: Tensor
) -> Floats:
    """Share of the variance that directions [f, D] explain on some rows each, of what the other latents leave over:
    least squares for one strength per latent; a negative one says that it is not there, and counts as nothing.
    """
    f, N = len(group), len(x)
    latent = np.repeat(np.arange(f), at.inside.sum(1).numpy())
    row = at.rows[at.inside].numpy()
    firings = sparse.csr_array((np.ones(len(row), np.float32), (latent, row)), shape=(f, N))
    of_others = torch.from_numpy(firings @ left.numpy())  # [f, D] sums of what all latents leave
    mine = np.asarray(firings.multiply(codes[:, group].T.tocsr()).sum(axis=1)).ravel()  # own strength on these rows
    length = block.norm(dim=1)
    unit = block / torch.where(length > 0, length, torch.ones_like(length))[:, None]
    along = (of_others * unit).sum(1) + torch.from_numpy(mine) * length
    total = (x - x.mean(0)).square().sum()
    return (along.clamp_min(0).square() / n / total).numpy().astype(np.float32)
