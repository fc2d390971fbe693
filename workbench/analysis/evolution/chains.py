"""Latents of SAEs that were trained at one snapshot each, followed over training by what they share given the token.

No code and no decoder is shared here: an SAE of one snapshot knows nothing of the others. Two latents count as one as
far as their codes correlate on the same tokens once each token's mean is taken out (token-conditional MPPC,
:mod:`workbench.analysis.comparison.given_token`): what reads the same word at two snapshots is no kin. A chain begins
with a latent of the first or last snapshot and goes from snapshot to snapshot to the best partner there. Its *curve* is
the correlation of the beginning with each member, so a chain that loses its way falls to what strangers share.

The beginning comes from SAEs of another seed than the members: at its own snapshot it then meets what another training
makes of the same rows, not itself, and the curve has a true maximum.

Axes: n latents a chain begins with, S snapshots in training order, F latents of a side that take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.analysis.comparison.given_token import TokenConditionalSide

Floats = NDArray[np.float64]
SAME = 0.5  # correlation somewhere on its curve from which a chain is one latent's
GONE = 0.1  # of its largest value, as for decoder norms


@dataclass(frozen=True)
class Chains:
    """``curves`` [n, S] along the chain; ``at_once`` [n, S] with the best partner at every snapshot, chained or not;
    ``strangers`` [n, S] the same when one side's rows were exchanged among rows of the same token; ``first``: the
    snapshot all chains begin at.
    """

    curves: Floats
    at_once: Floats
    strangers: Floats
    first: int

    @property
    def known(self) -> NDArray[np.bool_]:
        """[n] chains that are one latent's somewhere: :data:`SAME` or more along them."""
        return np.asarray(self.curves.max(1) >= SAME)

    def relative(self, *, chained: bool = True) -> Floats:
        """[known, S] curves above what strangers share, over their maxima; at least 0."""
        seen = (self.curves if chained else self.at_once)[self.known]
        above = np.clip(seen - self.strangers[self.known], 0, None)
        return np.asarray(above / np.maximum(above.max(1, keepdims=True), 1e-12))

    def absent(self, snapshot: int, *, chained: bool = True) -> float:
        """Share of the known chains without a tenth of their maximum at a snapshot."""
        at = self.relative(chained=chained)[:, snapshot]
        return float((at < GONE).mean()) if len(at) else float("nan")


def correlations(a: TokenConditionalSide, b: TokenConditionalSide) -> Floats:
    """[F_a, F_b] correlation, given the token, of all latents that take part."""
    products = (a.by_latent(0) @ b.scaled(0)).toarray()
    return np.asarray(products - np.outer(a.u, b.u))


def chains(
    begin: TokenConditionalSide,
    sides: Sequence[TokenConditionalSide],
    exchanged: Sequence[TokenConditionalSide],
    *,
    backwards: bool,
) -> Chains:
    """Follow every latent of ``begin`` through ``sides``, one per snapshot.

    Args:
        begin: another seed's SAE at the last snapshot (``backwards``) or the first.
        sides: SAEs of one seed, in training order.
        exchanged: the same with their rows exchanged among rows of the same token.
    """
    S = len(sides)
    order = range(S - 1, -1, -1) if backwards else range(S)
    curves, at_once, strangers = (np.zeros((len(begin.ids), S)) for _ in range(3))
    member, before = np.zeros(0, np.int64), -1
    for s in order:
        r = correlations(begin, sides[s])
        member = r.argmax(1) if before < 0 else correlations(sides[before], sides[s]).argmax(1)[member]
        curves[:, s] = np.take_along_axis(r, member[:, None], 1)[:, 0]
        at_once[:, s] = r.max(1)
        strangers[:, s] = correlations(begin, exchanged[s]).max(1)
        before = s
    return Chains(curves, at_once, strangers, order[0])


def kinship(rows: Sequence[TokenConditionalSide], columns: Sequence[TokenConditionalSide]) -> Floats:
    """[S, S] mean correlation of a latent of one snapshot with its best partner at another, both directions' mean;
    ``rows`` and ``columns`` are SAEs of two seeds.
    """
    S = len(rows)
    out = np.zeros((S, S))
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            r = correlations(a, b)
            out[i, j] = (r.max(1).mean() + r.max(0).mean()) / 2
    return (out + out.T) / 2
