"""Max pairwise Pearson correlation (MPPC) between the latents of two dictionaries, from their sparse codes.

For latent i of a and latent j of b over N tokens (*Towards Universality*, arXiv 2410.06672, eq. 2):

    r_ij = (S_ab - S_a S_b / N) / sqrt((S_aa - S_a^2 / N) (S_bb - S_b^2 / N)),     MPPC_i = max_j r_ij   (signed)

Only S_ab couples the two sides, and with k of F latents active it is a sparse product of N k_a k_b multiply-adds
instead of a dense one of N F_a F_b. Everything is float64. Pairs that never fire together have S_ab = 0 and their
exact, slightly negative r, so the maximum is over all pairs. Latents that fire on nearly every token are centred first,
because for them S_aa - S_a^2 / N would cancel. The F_a x F_b matrix is made a block of rows at a time and never held
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sae import system
from sae.errors import UsageError
from workbench.analysis.comparison.codes import Side, prepare
from workbench.analysis.comparison.sparse_product import Product, one_thread

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Codes: TypeAlias = Any  # scipy sparse matrix or array [tokens, F], or a sequence of such blocks

BLOCK_BYTES = 16 * 2**20  # of r per worker where all tokens are one block: stays near the caches
STREAM_BYTES = 1 * 2**30  # of r where tokens come in several blocks: one pass over them per this many bytes


@dataclass(frozen=True)
class Match:
    """The best partner in b of every latent of a. Arrays are [F_a].

    ``r`` is NaN, and ``partner`` -1, for latents that are constant, that fire less than the minimum, or that have no
    candidate. Ties go to the partner with the smallest index.
    """

    r: Floats  # best signed Pearson correlation
    partner: Ints  # latent of b
    n_cofire: Ints  # tokens on which both fire
    second_r: Floats  # runner-up (NaN where b has a single candidate)
    second: Ints
    n_fired: Ints  # firings of the latent itself
    n_tokens: int
    candidates: Ints | None = None  # [F_a, top], best first, -1 padded
    candidates_r: Floats | None = None
    reverse: Match | None = field(default=None, repr=False)  # the best partner in a of every latent of b


@dataclass
class _Best:
    """Best and second best over what was seen so far, for n latents. ``id`` is -1 where nothing was."""

    r: Floats
    id: Ints
    r2: Floats
    id2: Ints

    @classmethod
    def empty(cls, n: int) -> _Best:
        return cls(np.full(n, -np.inf), np.full(n, -1), np.full(n, -np.inf), np.full(n, -1))

    def offer(self, at: NDArray[np.intp] | slice, r: Floats, id: Ints) -> None:
        """Offer one more candidate to the latents ``at``; higher r wins, then the smaller id."""
        r1, i1, r2, i2 = self.r[at], self.id[at], self.r2[at], self.id2[at]
        first = _beats(r, id, r1, i1)
        second = ~first & _beats(r, id, r2, i2)
        self.r2[at] = np.where(first, r1, np.where(second, r, r2))
        self.id2[at] = np.where(first, i1, np.where(second, id, i2))
        self.r[at] = np.where(first, r, r1)
        self.id[at] = np.where(first, id, i1)


def _beats(r: Floats, id: Ints, r0: Floats, id0: Ints) -> NDArray[np.bool_]:
    return (id >= 0) & ((r > r0) | ((r == r0) & ((id < id0) | (id0 < 0))))


def max_pairwise_correlation(
    codes_a: Codes,
    codes_b: Codes,
    *,
    min_firings: int = 1,
    top: int = 0,
    workers: int | None = None,
    rows: tuple[int, int] | None = None,
    backend: str = "auto",
) -> Match:
    """Best partner in b, by Pearson correlation, of every latent of a; ``.reverse`` holds the other direction.

    Args:
        codes_a, codes_b: scipy sparse ``[tokens, F]``, any float type, over the same tokens. Or a sequence of such
            blocks of consecutive tokens (it may load them when indexed): then no more than one block per side is held,
            and the sequence is gone through once per gibibyte of the F_a x F_b matrix.
        min_firings: latents of either side that fire on fewer tokens take no part. Two latents that fire n and m times
            and coincide once already have r = 1/sqrt(n m), so claims about matches want 30 to 50.
        top: also keep this many candidates per latent of a.
        workers: threads (the product releases the interpreter); default: the cores this process may use.
        rows: work on these latents of a only, ``(first, last + 1)``; :func:`merge` joins what several processes made.
        backend: ``"mkl"`` (PyTorch's sparse product into a dense block), ``"scipy"``, or ``"auto"``.

    Raises:
        UsageError: the two sides have different numbers of tokens, or one is not a sparse matrix.
        NonFiniteError: a code is NaN or infinite.
    """
    a, b = prepare(codes_a, "codes_a", min_firings), prepare(codes_b, "codes_b", min_firings)
    return correlate(a, b, top=top, workers=workers, rows=rows, backend=backend)


def correlate(
    a: Side,
    b: Side,
    *,
    top: int = 0,
    workers: int | None = None,
    rows: tuple[int, int] | None = None,
    backend: str = "auto",
) -> Match:
    """:func:`max_pairwise_correlation` of sides that were prepared once and meet several partners."""
    if a.n_tokens != b.n_tokens or a.block_sizes != b.block_sizes:
        sizes = [f"{x.n_tokens:,} in {len(x.block_sizes)} blocks" for x in (a, b)]
        raise UsageError(f"the two sides must cover the same tokens: {sizes[0]} against {sizes[1]}.")
    lo, hi = np.searchsorted(a.ids, rows) if rows else (0, len(a.ids))
    workers = system.cores() if workers is None else workers
    streaming = len(a.block_sizes) > 1
    share = STREAM_BYTES // max(workers, 1) if streaming else BLOCK_BYTES
    step = max(1, min(share // max(8 * len(b.ids), 1), -(-(hi - lo) // max(workers, 1))))
    jobs = [(s, min(s + step, int(hi))) for s in range(int(lo), int(hi), step)] if len(b.ids) else []

    forward, backward = _Best.empty(len(a.ids)), _Best.empty(len(b.ids))
    cand = (np.full((len(a.ids), top), -1), np.full((len(a.ids), top), -np.inf)) if top else None
    lock = Lock()
    product = Product(a, b, backend)

    def work(job: tuple[int, int]) -> None:
        r = product(*job)
        _best_of_rows(r, job, forward)
        if cand:
            _candidates(r, job, cand)
        _best_of_columns(r, job[0], backward, lock)

    with one_thread(), ThreadPoolExecutor(max(workers, 1), initializer=product.start_worker) as pool:
        for _ in pool.map(work, jobs):
            pass
    return _result(a, b, forward, cand, _result(b, a, backward, None, None))


def _best_of_rows(r: Floats, job: tuple[int, int], best: _Best) -> None:
    """Top two of every row; r [n, F_b] is left as it was."""
    n = np.arange(len(r))
    j1 = r.argmax(axis=1)
    r1 = r[n, j1]
    best.r[slice(*job)], best.id[slice(*job)] = r1, j1
    if r.shape[1] > 1:
        r[n, j1] = -np.inf
        j2 = r.argmax(axis=1)
        best.r2[slice(*job)], best.id2[slice(*job)] = r[n, j2], j2
        r[n, j1] = r1


def _best_of_columns(r: Floats, first: int, best: _Best, lock: Lock) -> None:
    """Offer the top two of every column to ``best``; after a few blocks few columns still improve."""
    high = r.max(axis=0)
    at = np.flatnonzero(high >= best.r2)
    part = r[:, at]
    n = np.arange(len(at))
    i1 = part.argmax(axis=0)
    with lock:
        best.offer(at, high[at], i1 + first)
    if len(r) > 1 and len(at):
        part[i1, n] = -np.inf
        i2 = part.argmax(axis=0)
        with lock:
            best.offer(at, part[i2, n], i2 + first)


def _candidates(r: Floats, job: tuple[int, int], cand: tuple[Ints, Floats]) -> None:
    import torch

    k = min(cand[0].shape[1], r.shape[1])
    values, ids = torch.from_numpy(r).topk(k, dim=1)
    cand[0][slice(*job), :k], cand[1][slice(*job), :k] = ids.numpy(), values.numpy()


def _result(a: Side, b: Side, best: _Best, cand: tuple[Ints, Floats] | None, reverse: Match | None) -> Match:
    """Back to the latents' own numbers, with the co-firing counts of the best pairs."""

    def ids_of(local: Ints) -> Ints:
        return np.where(local >= 0, b.ids[local], -1) if len(b.ids) else np.full(local.shape, -1)

    def spread(values: NDArray, fill: float) -> NDArray:
        out = np.full((a.n_latents, *values.shape[1:]), fill, dtype=values.dtype)
        out[a.ids] = values
        return out

    def clean(r: Floats, local: Ints) -> Floats:
        return np.where(local >= 0, r.clip(-1, 1), np.nan)

    partner = spread(ids_of(best.id), -1)
    return Match(
        r=spread(clean(best.r, best.id), np.nan),
        partner=partner,
        n_cofire=a.count_together(b, partner),
        second_r=spread(clean(best.r2, best.id2), np.nan),
        second=spread(ids_of(best.id2), -1),
        n_fired=a.n_fired,
        n_tokens=a.n_tokens,
        candidates=spread(ids_of(cand[0]), -1) if cand else None,
        candidates_r=spread(clean(cand[1], cand[0]), np.nan) if cand else None,
        reverse=reverse,
    )


def merge(parts: Sequence[Match]) -> Match:
    """Join the results of several ``rows`` ranges (made by any number of processes) into the result of all rows."""
    out = _merge(parts)
    back = [p.reverse for p in parts if p.reverse is not None]
    return Match(**{**vars(out), "reverse": _merge(back) if len(back) == len(parts) else None})


def _merge(parts: Sequence[Match]) -> Match:
    best = _Best.empty(len(parts[0].r))
    cofire = np.zeros(len(best.r), dtype=np.int64)
    for p in parts:
        for r, id in ((p.r, p.partner), (p.second_r, p.second)):
            best.offer(slice(None), np.where(id >= 0, r, -np.inf), id)
    for p in parts:
        cofire = np.where((p.partner == best.id) & (p.partner >= 0), p.n_cofire, cofire)
    cand, cand_r = parts[0].candidates, parts[0].candidates_r
    for p in parts[1:]:
        if cand is not None and cand_r is not None and p.candidates is not None and p.candidates_r is not None:
            mine = p.candidates[:, :1] >= 0
            cand, cand_r = np.where(mine, p.candidates, cand), np.where(mine, p.candidates_r, cand_r)
    return Match(
        r=np.where(best.id >= 0, best.r, np.nan),
        partner=best.id,
        n_cofire=cofire,
        second_r=np.where(best.id2 >= 0, best.r2, np.nan),
        second=best.id2,
        n_fired=parts[0].n_fired,
        n_tokens=parts[0].n_tokens,
        candidates=cand,
        candidates_r=cand_r,
    )
