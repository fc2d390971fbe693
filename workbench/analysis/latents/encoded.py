"""Sparse codes of a dictionary over the rows of a store: the table every statistic of latents is computed from.

Codes are held as (token row, latent, value) triples in latent-major order (a CSC matrix): ``k`` of ``F`` entries per
row instead of a dense table. Rows stay in store order, so one sequence's rows are neighbours and carry their token id,
sequence and position as keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import scipy.sparse
import torch

from sae.errors import NonFiniteError, UsageError
from workbench.run import QUIET, Run

MAX_BLOCK = 4096
BLOCK_VALUES = 2**25  # pre-activations held at once: 128 MiB


class Rows(Protocol):
    """What is needed of an activation store; see :class:`workbench.activations.ActivationStore`."""

    def __len__(self) -> int: ...

    def read(self, hook: Any, rows: Any = None, source: Any = None) -> torch.Tensor: ...

    def tokens(self, rows: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Codes:
    """Codes of ``n_latents`` latents on N rows; entries of latent i are ``indptr[i]:indptr[i+1]``, rows ascending."""

    n_latents: int
    ids: np.ndarray  # [N] token id of each row
    seq: np.ndarray  # [N] sequence of the store
    pos: np.ndarray  # [N] position in the sequence
    indptr: np.ndarray  # [F + 1] int64
    row: np.ndarray  # [nnz] int32
    value: np.ndarray  # [nnz] float32, > 0

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return len(self.ids)

    @cached_property
    def n_fired(self) -> np.ndarray:
        """[F] rows on which each latent is active."""
        return np.diff(self.indptr)

    @cached_property
    def latent(self) -> np.ndarray:
        """[nnz] latent of each entry."""
        return np.repeat(np.arange(self.n_latents, dtype=np.int32), self.n_fired)

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, values) of one latent."""
        s = slice(int(self.indptr[latent]), int(self.indptr[latent + 1]))
        return self.row[s], self.value[s]

    def matrix(self) -> scipy.sparse.csc_array:
        """[N, F] sparse matrix sharing this memory."""
        return scipy.sparse.csc_array((self.value, self.row, self.indptr), shape=(self.n_tokens, self.n_latents))

    def keep(self, rows: np.ndarray) -> Codes:
        """The same codes on a subset of rows (boolean mask [N])."""
        renumber = np.cumsum(rows, dtype=np.int64) - 1
        inside = rows[self.row]
        counts = np.bincount(self.latent[inside], minlength=self.n_latents)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Codes(
            self.n_latents,
            self.ids[rows],
            self.seq[rows],
            self.pos[rows],
            indptr,
            renumber[self.row[inside]].astype(np.int32),
            self.value[inside],
        )


def from_rows(
    n_latents: int, ids: np.ndarray, seq: np.ndarray, pos: np.ndarray, values: np.ndarray, indices: np.ndarray
) -> Codes:
    """Codes from the row-major output of ``encode_sparse``: values and indices [N, k]; entries <= 0 are not active."""
    active = values > 0
    per_row = np.concatenate([[0], np.cumsum(active.sum(1))])
    csr = scipy.sparse.csr_array(
        (values[active], indices[active].astype(np.int32), per_row), shape=(len(ids), n_latents)
    )
    csc = csr.tocsc()  # counting sort, rows stay ascending inside a latent
    return Codes(
        n_latents, ids, seq, pos, csc.indptr.astype(np.int64), csc.indices.astype(np.int32), csc.data.astype(np.float32)
    )


def choose_rows(n_rows: int, n_tokens: int | None, *, unit: int = 1, piece: int = 16384) -> list[slice]:
    """Row ranges with about ``n_tokens`` rows in total: everything, or equal pieces spread evenly over the store.

    Args:
        unit: rows of a sequence; pieces start and end with whole sequences.

    Raises:
        UsageError: the store is empty or ``n_tokens`` is not positive.
    """
    if n_rows < 1:
        raise UsageError("the store has no rows. Harvest again with more sequences (n_seq).")
    if n_tokens is not None and n_tokens < 1:
        raise UsageError(f"--tokens {n_tokens} is not positive. Give 1 or more.")
    if n_tokens is None or n_tokens >= n_rows:
        return [slice(0, n_rows)]
    n_pieces = max(1, round(n_tokens / piece))
    size = max(unit, n_tokens // n_pieces // unit * unit)
    starts = [int(a) // unit * unit for a in np.linspace(0, n_rows - size, n_pieces)]
    return [slice(a, min(a + size, b)) for a, b in pairwise([*starts, n_rows])]


def store_rows(store: Any, n_tokens: int | None) -> list[slice]:
    """About ``n_tokens`` rows of a store or of what stands for one, as :func:`choose_rows`, in whole sequences."""
    unit = int(getattr(getattr(store, "spec", None), "rows_per_seq", 1))
    if not hasattr(store, "whole_sequences"):
        return choose_rows(len(store), n_tokens, unit=unit)
    spec = store.spec
    if n_tokens is not None and spec.row_mask:  # ranges are of rows on disk, most of which may be left out
        n_tokens = -(-n_tokens * spec.n_rows // len(store))
    chosen: list[slice] = store.whole_sequences(choose_rows(spec.n_rows, n_tokens, unit=unit))
    return chosen


def pre_activations(dictionary: Any, x: torch.Tensor) -> torch.Tensor:
    """[B, F] the encoder's output before selection and nonlinearity, for raw rows [B, d].

    Selection weights (decoder norms, in some variants) are not applied: values are on the scale of activations.
    """
    if hasattr(dictionary, "pre_activations"):
        return torch.as_tensor(dictionary.pre_activations(x))
    scale = getattr(dictionary, "scale_D", None)
    rows = x.to(dictionary.b_enc.dtype) if scale is None else x.to(dictionary.b_enc.dtype) * scale
    b_dec = dictionary.b_dec.reshape(-1)
    return torch.addmm(dictionary.b_enc - b_dec @ dictionary.W_enc, rows, dictionary.W_enc)


def codes_and_scores(dictionary: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(values, indices, pre-activations) of raw rows.

    A plain Top-K dictionary needs one dense product for all three.
    """
    pre = pre_activations(dictionary, x)
    activation = getattr(dictionary, "activation", None)
    if type(activation).__name__ != "TopK" or type(dictionary).encode_sparse is not _plain_encode_sparse():
        return *dictionary.encode_sparse(x), pre
    from sae.backends import pick

    values, indices = pick("auto", pre).top_k(pre, dictionary.k)
    return values.clamp_min(0), indices, pre


@cache
def _plain_encode_sparse() -> Any:
    from sae import SAE

    return SAE.encode_sparse


def encode_store(
    dictionary: Any,
    store: Rows,
    hook: str | list[str],
    *,
    source: Any = None,
    rows: list[slice] | None = None,
    block: int | None = None,
    each_block: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None,
    run: Run = QUIET,
) -> Codes:
    """Encode rows of a store in blocks with ``encode_sparse``.

    Args:
        rows: row ranges (default: all). block: rows encoded at once (default: what keeps the block's pre-activations
        within 128 MiB).
        each_block: called with (first row among the chosen ones, pre-activations [B, F], values [B, k], indices [B,
        k]).

    Raises:
        NonFiniteError: an activation is NaN or infinite.
    """
    block = block or max(64, min(MAX_BLOCK, BLOCK_VALUES // int(dictionary.W_dec.shape[0])))
    values_all: list[np.ndarray] = []
    indices_all: list[np.ndarray] = []
    keys: list[tuple[np.ndarray, ...]] = []
    done, skipped = 0, bool(getattr(store, "skipped", ()))
    rows = rows or [slice(0, len(store))]
    total = sum(chosen.stop - chosen.start for chosen in rows)
    with torch.inference_mode(), run.bar("encoding", total, "row") as bar:
        for chosen in rows:
            for start in range(chosen.start, chosen.stop, block):
                part = slice(start, min(start + block, chosen.stop))
                x = store.read(hook, rows=part, source=source).float()
                key = store.tokens(part)
                if skipped:  # sequences the store left out read as NaN
                    there = torch.isfinite(x).all(1)
                    x, key = x[there], tuple(np.asarray(k)[there.numpy()] for k in key)
                if each_block is None:
                    values, indices = dictionary.encode_sparse(x)
                else:
                    values, indices, pre = codes_and_scores(dictionary, x)
                if not bool(torch.isfinite(values).all()):
                    raise NonFiniteError(
                        f"activations of the latents at rows {part.start}–{part.stop} of {hook} are not finite. Run"
                        " `workbench check` on the store."
                    )
                if each_block is not None:
                    each_block(done, pre, values, indices)
                values_all.append(values.float().cpu().numpy())
                indices_all.append(indices.to(torch.int32).cpu().numpy())
                keys.append(key)
                done += len(x)
                bar.update(part.stop - part.start)
    ids, seq, pos = (np.concatenate([np.asarray(k[i]) for k in keys]) for i in range(3))
    width = max(v.shape[1] for v in values_all)  # the widest row of a JumpReLU dictionary differs between blocks
    values_all = [np.pad(v, ((0, 0), (0, width - v.shape[1]))) for v in values_all]
    indices_all = [np.pad(i, ((0, 0), (0, width - i.shape[1]))) for i in indices_all]
    return from_rows(
        int(dictionary.W_dec.shape[0]), ids, seq, pos, np.concatenate(values_all), np.concatenate(indices_all)
    )
