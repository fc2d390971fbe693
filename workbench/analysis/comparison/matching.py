"""One-to-one matches from best partners: mutual best, and the assignment of greatest total r (Hungarian).

The maximum over partners is neither symmetric nor one-to-one: one popular latent of b may be the best partner of many
of a. Both versions here are stricter, and are reported beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from sae.errors import UsageError
from workbench.analysis.comparison.depth import LayerMatches
from workbench.analysis.correlation import Floats, Ints


@dataclass(frozen=True)
class OneToOne:
    """At most one partner per latent, on both sides. Arrays are [F_a]; -1 and NaN where unmatched."""

    partner: Ints
    r: Floats


def mutual(partner_a: Ints, r_a: Floats, partner_b: Ints, *, level: float = -1.0) -> OneToOne:
    """Pairs that are each other's best partner, with r of at least ``level``.

    Args:
        partner_a, partner_b: each side's best partner on the other (-1: none), [F_a] and [F_b]. r_a: [F_a].
    """
    have = np.flatnonzero(partner_a >= 0)
    keep = have[(partner_b[partner_a[have]] == have) & (r_a[have] >= level)]
    partner, r = np.full(len(partner_a), -1), np.full(len(partner_a), np.nan)
    partner[keep], r[keep] = partner_a[keep], r_a[keep]
    return OneToOne(partner, r)


def assign(candidates: Ints, r: NDArray[np.floating], n_b: int, *, level: float = 0.0) -> OneToOne:
    """The one-to-one assignment with the greatest sum of (r - level) among the candidates; latents may stay single.

    Args:
        candidates, r: [F_a, K], K candidate partners per latent of a (-1: none), for example ``Match.candidates``.
        n_b: latents of b.
        level: pairs at or below it are not made: staying single is worth more.
    """
    n_a = len(candidates)
    row, slot = np.nonzero((candidates >= 0) & (np.nan_to_num(r, nan=-np.inf) > level))
    partner, best = np.full(n_a, -1), np.full(n_a, np.nan)
    if not len(row):
        return OneToOne(partner, best)
    # Cost 2 - r for a pair, 2 - level for the private "single" column of a row: every row has a full matching.
    cost = np.concatenate([2 - r[row, slot].astype(np.float64), np.full(n_a, 2 - level)])
    rows = np.concatenate([row, np.arange(n_a)])
    columns = np.concatenate([candidates[row, slot], n_b + np.arange(n_a)])
    graph = sp.csr_array((cost, (rows, columns)), shape=(n_a, n_b + n_a))
    i, j = min_weight_full_bipartite_matching(graph)
    made = j < n_b
    partner[i[made]] = j[made]
    best[i[made]] = 2 - np.asarray(graph[i[made], j[made]]).ravel()
    return OneToOne(partner, best)


def pooled_candidates(matches: LayerMatches, top: int = 50) -> tuple[Ints, Floats, Ints, Ints]:
    """Candidates over all layers of b for the latents of all layers of a, numbered through.

    Returns:
        candidates, r: [sum F_a, top]; offsets_a [L_a + 1] and offsets_b [L_b + 1], where each layer's latents begin.
    """
    n_a, n_b = len(matches.layers_a), len(matches.layers_b)
    widths_a = [len(matches.pairs[i, 0].r) for i in range(n_a)]
    widths_b = [len(m.reverse.r) if (m := matches.pairs[0, j]).reverse is not None else 0 for j in range(n_b)]
    offsets_a, offsets_b = np.concatenate([[0], np.cumsum(widths_a)]), np.concatenate([[0], np.cumsum(widths_b)])
    ids, values = [], []
    for i in range(n_a):
        row = [matches.pairs[i, j] for j in range(n_b)]
        if any(m.candidates is None for m in row):
            raise UsageError("pooled_candidates needs matches that kept their candidates. Make them with top > 0.")
        c = np.concatenate(
            [np.where(m.candidates >= 0, m.candidates + offsets_b[j], -1) for j, m in enumerate(row)],  # type: ignore[operator]
            axis=1,
        )
        v = np.concatenate([m.candidates_r for m in row], axis=1)  # type: ignore[misc]
        order = np.argsort(-np.nan_to_num(v, nan=-np.inf), axis=1, kind="stable")[:, :top]
        ids.append(np.take_along_axis(c, order, axis=1))
        values.append(np.take_along_axis(v, order, axis=1))
    return np.concatenate(ids), np.concatenate(values), offsets_a, offsets_b
