"""Correlation of codes *given the token*: what two dictionaries share beyond reading the same word.

Two latents that both fire on one word correlate whatever the models compute, so the raw maximum correlation is high
even between untrained models. Two readings take the token out:

- *same-token*: the tokens of one side are exchanged among occurrences of the same token. What is left of the raw
  correlation is what the current token alone explains; a similarity that does not exceed it is shared input.
- *token-conditional*: each code minus its mean over occurrences of the token, the mean estimated on the other half of
  the sequences (cross-fitted, so a token's mean never contains the code it is taken from).

The residuals are dense, but their products are not needed: with S_g the sum of a latent's codes over the n_g rows of
one token in one half (a cell g), m_g the mean of the same token in the other half and D_g = S_g - n_g m_g,

    sum_t (x - m)(y - m') = sum_t x y - sum_g S_g S'_g / n_g + sum_g D_g D'_g / n_g,

which is a sparse product of the codes with two rows per cell appended. Rows whose token occurs in one half only have
no such mean and take no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from workbench.analysis.comparison.codes import Side, by_columns

DETERMINED = 1e-9  # share of a latent's raw sum of squares below which nothing is left once the token is known


@dataclass(frozen=True)
class TokenCells:
    """The rows that can be conditioned on their token, and how they fall into cells (token, half of the sequences).

    Attributes:
        rows: int64 [n], rows of the token set whose token occurs in both halves, ascending.
        cell: int64 [n], cell of each of these rows: 2 * token + half.
        n_cells: twice the number of tokens.
    """

    rows: NDArray[np.int64]
    cell: NDArray[np.int64]
    n_cells: int

    @classmethod
    def of(cls, ids: NDArray[np.integer], seq: NDArray[np.integer]) -> TokenCells:
        """Cells of rows with token ``ids`` [N] in sequences ``seq`` [N]; the halves are every other sequence."""
        half = np.unique(seq, return_inverse=True)[1] % 2
        token = np.unique(ids, return_inverse=True)[1]
        n = int(token.max()) + 1 if len(token) else 0
        seen = np.bincount(2 * token + half, minlength=2 * n).reshape(n, 2)
        rows = np.flatnonzero(seen.min(axis=1)[token] > 0)
        kept = np.unique(token[rows], return_inverse=True)[1]
        return cls(rows, 2 * kept + half[rows], 2 * (int(kept.max()) + 1) if len(rows) else 0)

    @cached_property
    def size(self) -> NDArray[np.float64]:
        """[n_cells] rows of each cell."""
        return np.bincount(self.cell, minlength=self.n_cells).astype(np.float64)

    @cached_property
    def other(self) -> NDArray[np.int64]:
        """[n_cells] the cell of the same token in the other half."""
        return np.arange(self.n_cells) ^ 1

    def exchanged(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """[n] a random order of ``rows`` in which every row has been exchanged with one of the same token and half."""
        out = np.empty(len(self.rows), np.int64)
        out[np.argsort(self.cell, kind="stable")] = np.lexsort((rng.random(len(self.cell)), self.cell))
        return out

    def sums(self, codes: sp.csr_array) -> sp.csr_array:
        """[n_cells, F] sums of codes [n, F] over the rows of each cell."""
        n = len(self.cell)
        indicator = sp.csr_array((np.ones(n), (self.cell, np.arange(n))), shape=(self.n_cells, n))
        return sp.csr_array(indicator @ codes)


class TokenConditionalSide(Side):
    """Codes minus the mean of their token, ready to meet another such side over the same :class:`TokenCells`.

    ``codes`` are CSR [n, F], already restricted to ``cells.rows``. Latents that fire on fewer than ``min_firings`` of
    these rows, or of which nothing is left once the token is known, take no part. Counts (``n_fired``, both firing)
    are of the codes themselves.
    """

    def __init__(self, codes: Any, cells: TokenCells, name: str, min_firings: int):
        super().__init__([codes], name, min_firings)
        self._codes = self.raw(0).astype(np.float64)
        self._sums = cells.sums(self._codes)
        scale = sp.diags_array(cells.size)
        means_of_other = sp.csr_array(sp.diags_array(1 / cells.size) @ self._sums)[cells.other]
        self._apart = sp.csr_array(self._sums - scale @ means_of_other)
        self._root = sp.diags_array(1 / np.sqrt(cells.size))
        weight = 1 / cells.size
        total = np.asarray(self._apart.sum(axis=0)).ravel()
        raw = np.asarray(self._codes.power(2).sum(axis=0)).ravel()
        between, apart = (np.asarray(x.power(2).T @ weight).ravel() for x in (self._sums, self._apart))
        squares = raw - between + apart - total**2 / self.n_tokens
        ok = (self.n_fired >= min_firings) & (squares > DETERMINED * raw)
        self.ids = np.flatnonzero(ok)
        self.scale = np.zeros(self.n_latents)
        self.scale[ok] = 1 / np.sqrt(squares[ok])
        self.u = (total * self.scale / np.sqrt(self.n_tokens))[self.ids]
        self._scaled = self._by_latent = None

    def scaled(self, i: int) -> sp.csr_array:
        """The right side of a product: codes, then cells with the sign the identity above gives them."""
        if self._scaled is None:
            self._scaled = self._extended(-1.0)
        return self._scaled

    def by_latent(self, i: int) -> sp.csr_array:
        """The left side of a product, [n, rows and cells]."""
        if self._by_latent is None:
            self._by_latent = self._extended(1.0).T.tocsr()
        return self._by_latent

    def _extended(self, sign: float) -> sp.csr_array:
        parts = [self._codes, sp.csr_array(self._root @ self._sums) * sign, sp.csr_array(self._root @ self._apart)]
        x = by_columns(sp.csr_array(sp.vstack(parts, format="csr")), self.ids)
        x.data *= self.scale[self.ids][x.indices]
        return x
