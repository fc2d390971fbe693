"""Which latent of A stands for which of B: best partners by correlation, on the codes that a comparison kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sae.errors import UsageError
from workbench.analysis.comparison.codes import Side
from workbench.analysis.comparison.given_token import TokenCells, TokenConditionalSide
from workbench.analysis.correlation import max_pairwise_correlation
from workbench.results.matches import MatchRecords

NEAREST = 20  # latents of nearest frequency among which a null's is drawn


@dataclass(frozen=True)
class SharedCodes:
    """Codes of dictionaries on the same rows: N tokens of S sequences, R positions each.

    Attributes:
        tokens: int [S, ctx]. seq, pos, ids: [N] of each row. is_row: bool [S, ctx].
        of: dictionary -> CSC [N, F].
    """

    tokens: NDArray[np.int32]
    seq: NDArray[np.int64]
    pos: NDArray[np.int64]
    ids: NDArray[np.int64]
    of: dict[str, sp.csc_array]

    @classmethod
    def read(cls, records: MatchRecords, names: tuple[str, ...]) -> SharedCodes:
        """The codes a comparison kept of some of its dictionaries.

        Raises:
            UsageError: the comparison's models cut the text differently. MissingError: it kept none.
        """
        if records.metadata.get("spans"):
            raise UsageError(
                f"{records.id} compares models with different tokenizers; a transplant needs two that read the same"
                " tokens. Name dictionaries of such models."
            )
        seq, pos, ids = records.places()
        rows = records.compared_rows
        renumber = np.full(len(seq), -1, np.int32)
        renumber[rows] = np.arange(len(rows), dtype=np.int32)
        of = {}
        for name in names:
            indptr, row, value = records.entries(name)
            codes = sp.csc_array(
                (np.asarray(value), renumber[row], np.asarray(indptr)), shape=(len(rows), len(indptr) - 1)
            )
            of[name] = codes
        return cls(np.asarray(records.tokens), seq[rows], pos[rows].astype(np.int64), ids[rows].astype(np.int64), of)

    @property
    def halves(self) -> NDArray[np.int64]:
        """[S] 0 where a sequence is of the training half (scales are fitted on it), 1 where things are measured."""
        return np.arange(len(self.tokens)) % 2

    @cached_property
    def training(self) -> NDArray[np.bool_]:
        """[N] rows of the training half."""
        return self.halves[self.seq] == 0

    @cached_property
    def is_row(self) -> NDArray[np.bool_]:
        """[S, ctx] which tokens are rows."""
        out = np.zeros(self.tokens.shape, bool)
        out[self.seq, self.pos] = True
        return out


@dataclass(frozen=True)
class Pairs:
    """Latents of B with their best partners in A. Arrays are [n], strongest correlation first.

    Attributes:
        r: Pearson correlation. r_given_token: of the same two, each code less its mean per token (NaN where nothing is
            left of either once the token is known). n_fired: tokens on which the latent fires.
        other: place in these arrays of a latent that fires about as often and has another partner; -1 without one.
    """

    latent: NDArray[np.int64]
    partner: NDArray[np.int64]
    r: NDArray[np.float64]
    r_given_token: NDArray[np.float64]
    n_fired: NDArray[np.int64]
    other: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.latent)


def pairs_of(codes: SharedCodes, a: str, b: str, *, min_firings: int, seed: int = 0) -> Pairs:
    """Best partner in A of every latent of B that fires often enough.

    Raises:
        UsageError: no latent has a partner.
    """
    of_a, of_b = sp.csr_array(codes.of[a].tocsr()), sp.csr_array(codes.of[b].tocsr())
    found = max_pairwise_correlation(of_b, of_a, min_firings=min_firings)
    latent = np.flatnonzero(found.partner >= 0)
    if not len(latent):
        raise UsageError(
            f"no latent of {b} fires {min_firings} times or more on the compared tokens and has a partner. Lower"
            " min_firings, or compare on more tokens."
        )
    latent = latent[np.argsort(-found.r[latent], kind="stable")]
    partner, fired = found.partner[latent], found.n_fired[latent]
    cells = TokenCells.of(codes.ids, codes.seq)
    sides = [TokenConditionalSide(x[cells.rows], cells, name, min_firings) for x, name in ((of_b, b), (of_a, a))]
    given = correlations(sides[0], sides[1], latent, partner)
    return Pairs(latent, partner, found.r[latent], given, fired, _others(partner, fired, seed))


def correlations(
    x: Side, y: Side, i: NDArray[np.int64], j: NDArray[np.int64], block: int = 1024
) -> NDArray[np.float64]:
    """Pearson's r of latent i[k] of one side with latent j[k] of the other; NaN where either takes no part."""
    at_x, at_y = np.searchsorted(x.ids, i), np.searchsorted(y.ids, j)
    known = (at_x < len(x.ids)) & (at_y < len(y.ids))
    known[known] &= (x.ids[at_x[known]] == i[known]) & (y.ids[at_y[known]] == j[known])
    out = np.full(len(i), np.nan)
    mine, theirs = x.by_latent(0), y.scaled(0).T.tocsr()
    where = np.flatnonzero(known)
    for lo in range(0, len(where), block):
        at = where[lo : lo + block]
        together = np.asarray(mine[at_x[at]].multiply(theirs[at_y[at]]).sum(axis=1)).ravel()
        out[at] = together - x.u[at_x[at]] * y.u[at_y[at]]
    return out


def _others(partner: NDArray[np.int64], fired: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """For each latent the place of another with about its frequency and another partner, drawn among the nearest."""
    rng, log = np.random.default_rng([seed, 1]), np.log(fired)
    out = np.full(len(partner), -1)
    for k in range(len(partner)):
        others = np.flatnonzero(partner != partner[k])
        if len(others):
            near = others[np.argsort(np.abs(log[others] - log[k]), kind="stable")[:NEAREST]]
            out[k] = rng.choice(near)
    return out
