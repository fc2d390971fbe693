"""One side of a comparison: sparse codes with their sums, centred and scaled so that a plain product gives Pearson's r.

Each latent's values are divided by the root of its centred sum of squares over the N tokens. Then
r_ij = sum_t x_i(t) y_j(t) - u_i v_j, where u_i = sum_t x_i(t) / sqrt(N), and v_j likewise. Subtracting a constant from
a latent changes nothing in r, so the few latents that fire on nearly every token are centred before they are scaled.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sae.errors import NonFiniteError, UsageError

DENSE = 0.99  # latents firing on more of the tokens than this are centred: their sums would cancel


class Side:
    """Codes of one dictionary over N tokens, ready to meet another side.

    Attributes:
        ids: int64 [n], the latents that take part (not constant, firing often enough), ascending.
        n_fired: int64 [F]; n_latents = F; n_tokens = N; block_sizes: tokens per block.
        u: float64 [n], sum of the scaled values / sqrt(N).
    """

    def __init__(self, blocks: Sequence[Any], name: str, min_firings: int):
        self.blocks, self.name = blocks, name
        first = _checked(blocks[0], name)
        self.n_latents = int(first.shape[1])
        self._first = first if len(blocks) == 1 else None
        sums = np.zeros((2, self.n_latents))
        self.n_fired = np.zeros(self.n_latents, dtype=np.int64)
        sizes = []
        for i in range(len(blocks)):
            x = self.raw(i)
            sizes.append(int(x.shape[0]))
            self.n_fired += np.bincount(x.indices, minlength=self.n_latents)
            sums[0] += np.bincount(x.indices, weights=x.data, minlength=self.n_latents)
            sums[1] += np.bincount(x.indices, weights=np.square(x.data, dtype=np.float64), minlength=self.n_latents)
        self.block_sizes, self.n_tokens = tuple(sizes), sum(sizes)
        n = max(self.n_tokens, 1)
        self.shift = np.zeros(self.n_latents)
        constant = self.n_fired == 0
        self.dense = np.flatnonzero(self.n_fired > DENSE * n)
        if len(self.dense):
            self.shift[self.dense] = sums[0, self.dense] / n
            constant[self.dense] = self._centre(sums)
        squares = sums[1] - sums[0] ** 2 / n
        ok = ~constant & (squares > 0) & (self.n_fired >= min_firings)
        self.ids = np.flatnonzero(ok)
        self.scale = np.zeros(self.n_latents)
        self.scale[ok] = 1 / np.sqrt(squares[ok])
        self.u = (sums[0] * self.scale / np.sqrt(n))[self.ids]
        self._scaled: sp.csr_array | None = None
        self._by_latent: sp.csr_array | None = None
        self._pattern: sp.csr_array | None = None

    def raw(self, i: int) -> sp.csr_array:
        """Block i as canonical CSR without stored zeros."""
        if self._first is not None:
            return self._first
        x = _checked(self.blocks[i], self.name)
        if x.shape[1] != self.n_latents:
            raise UsageError(f"{self.name}: block {i} has {x.shape[1]:,} latents, block 0 has {self.n_latents:,}.")
        return x

    def _centre(self, sums: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Replace the sums of the dense latents by those about their mean; says which of them are constant."""
        low, high = np.full(len(self.dense), np.inf), np.full(len(self.dense), -np.inf)
        sums[:, self.dense] = 0
        for i in range(len(self.blocks)):
            column = (
                self.raw(i)[:, self.dense].toarray().astype(np.float64)
            )  # [tokens, few]: at most k of them reach this density
            low, high = np.minimum(low, column.min(axis=0)), np.maximum(high, column.max(axis=0))
            column -= self.shift[self.dense]
            sums[0, self.dense] += column.sum(axis=0)
            sums[1, self.dense] += np.square(column).sum(axis=0)
        return low == high

    def scaled(self, i: int) -> sp.csr_array:
        """Block i as float64 CSR [tokens, n]: centred where dense, divided by the root of the sum of squares."""
        if self._scaled is not None:
            return self._scaled
        x = self.raw(i)
        y = sp.csr_array(((x.data - self.shift[x.indices]) * self.scale[x.indices], x.indices, x.indptr), shape=x.shape)
        silent = np.flatnonzero(self.n_fired[self.dense] < self.n_tokens)
        if len(silent):  # a centred latent has a value where it does not fire, too
            latents = self.dense[silent]
            token, which = np.nonzero(x[:, latents].toarray() == 0)
            values = -self.shift[latents] * self.scale[latents]
            y = y + sp.csr_array((values[which], (token, latents[which])), shape=x.shape)
        if len(self.ids) < self.n_latents:
            y = by_columns(y, self.ids)
        if len(self.blocks) == 1:
            self._scaled = y
        return y

    def by_latent(self, i: int) -> sp.csr_array:
        """Block i as float64 CSR [n, tokens]."""
        if self._by_latent is not None:
            return self._by_latent
        y = self.scaled(i).T.tocsr()
        if len(self.blocks) == 1:
            self._by_latent = y
        return y

    def pattern(self, i: int) -> sp.csr_array:
        """Where the latents fire: int8 CSR [F, tokens] of ones."""
        if self._pattern is not None:
            return self._pattern
        x = self.raw(i)
        ones = sp.csr_array((np.ones(x.nnz, dtype=np.int8), x.indices, x.indptr), shape=x.shape).T.tocsr()
        if len(self.blocks) == 1:
            self._pattern = ones
        return ones

    def restricted(self, latents: NDArray[np.int64]) -> Side:
        """The same side with only these latents (of those that take part anyhow)."""
        keep = np.isin(self.ids, latents)
        out = copy.copy(self)
        out.ids, out.u = self.ids[keep], self.u[keep]
        out._scaled = out._by_latent = None
        return out

    def count_together(self, other: Side, partner: NDArray[np.int64], block: int = 2048) -> NDArray[np.int64]:
        """Tokens on which latent i and latent partner[i] of the other side both fire; 0 where there is no partner."""
        out = np.zeros(self.n_latents, dtype=np.int64)
        have = np.flatnonzero(partner >= 0)
        for i in range(len(self.blocks)):
            mine, theirs = self.pattern(i), other.pattern(i)
            for lo in range(0, len(have), block):
                at = have[lo : lo + block]
                out[at] += np.asarray(mine[at].multiply(theirs[partner[at]]).sum(axis=1, dtype=np.int64)).ravel()
        return out


def prepare(codes: Any, name: str = "codes", min_firings: int = 1) -> Side:
    """A :class:`Side` from CSR codes ``[tokens, F]``, or from a sequence of blocks of consecutive tokens; one that is
    prepared already is returned as it is.

    Raises:
        UsageError: not sparse, or no block at all. NonFiniteError: a NaN or infinite code.
    """
    if isinstance(codes, Side):
        return codes
    if sp.issparse(codes):
        return Side([codes], name, min_firings)
    if not isinstance(codes, Sequence) or len(codes) == 0:
        raise UsageError(
            f"{name} must be a scipy sparse matrix [tokens, latents] or a sequence of them, not {type(codes).__name__}."
        )
    return Side(codes, name, min_firings)


def _checked(x: Any, name: str) -> sp.csr_array:
    if not sp.issparse(x) or x.ndim != 2:
        raise UsageError(f"{name} must be a scipy sparse matrix [tokens, latents], not {type(x).__name__}.")
    y = sp.csr_array(x)
    if y.nnz and not np.isfinite(y.data).all():
        row = int(np.searchsorted(y.indptr, np.flatnonzero(~np.isfinite(y.data))[0], side="right")) - 1
        raise NonFiniteError(
            f"{name} holds NaN or infinity at token {row:,}. Check the rows it was made from: `workbench check`."
        )
    if not y.has_canonical_format or (y.nnz and not y.data.all()):
        y = y.copy()
        y.sum_duplicates()
        y.eliminate_zeros()
    if y.indices.dtype != np.int32:
        y = sp.csr_array(
            (y.data, y.indices.astype(np.int32), y.indptr.astype(np.int32 if y.nnz < 2**31 else np.int64)),
            shape=y.shape,
        )
    return y


def by_columns(y: sp.csr_array, ids: NDArray[np.int64]) -> sp.csr_array:
    """The columns ``ids`` of y, in order, with 32-bit indices."""
    new = np.full(y.shape[1], -1, dtype=np.int32)
    new[ids] = np.arange(len(ids), dtype=np.int32)
    to = new[y.indices]
    keep = to >= 0
    counts = np.concatenate([[0], np.cumsum(keep)])[y.indptr]
    return sp.csr_array((y.data[keep], to[keep], counts.astype(np.int32)), shape=(y.shape[0], len(ids)))
