"""Is a latent found again in another dictionary that reads the same tokens?

The best Pearson correlation over all latents of the other one (MPPC, arXiv 2410.06672), beside what chance gives: the
same maximum where the other's codes are moved on by whole sequences, 99 % of it, for latents that fire as often. A
maximum over many candidates is high by chance alone, most for rare latents, so one threshold for all would not do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sae.errors import UsageError
from workbench.analysis.comparison.baselines import firing_bins, null_by_bin, per_latent, rotated
from workbench.analysis.comparison.codes import prepare
from workbench.analysis.correlation import Floats, Ints, correlate

DRAWS = 3  # shifts whose maxima make the null
QUANTILE = 0.99
LEVEL = 0.5  # r from which a latent counts as found, as in `workbench compare`


@dataclass(frozen=True)
class Found:
    """Arrays [F]: best correlation (NaN: fires too seldom), 99 % of chance for latents that fire as often, partner (-1:
    none), tokens on which both fire.
    """

    r: Floats
    chance: Floats
    partner: Ints
    n_cofire: Ints

    @property
    def found(self) -> NDArray[np.bool_]:
        """r of at least ``LEVEL``, and above chance."""
        return np.asarray((self.r >= LEVEL) & (self.r > self.chance))


def found_again(
    own: sp.csr_array, other: sp.csr_array, seq: NDArray[np.integer], *, min_firings: int, seed: int = 0
) -> Found:
    """Match the latents of ``own`` [N, F] with those of ``other`` [N, F'] on the same tokens.

    Args:
        seq: [N] sequence of each row; rows of a sequence are consecutive. min_firings: latents of either side that fire
            less take no part.

    Raises:
        UsageError: fewer than three sequences: nothing to shift by, so no chance level.
    """
    n = len(np.unique(seq))
    if n < 3:
        raise UsageError(
            "the chance level of a match pairs each text with another one and needs at least 3 sequences; there are"
            f" {n}. Harvest more sequences."
        )
    a = prepare(own, "own codes", min_firings)
    match = correlate(a, prepare(other, "the other's codes", min_firings))
    edges = firing_bins(match.n_fired[np.isfinite(match.r)])
    rng = np.random.default_rng([seed, 1])
    nulls = []
    for _ in range(DRAWS):
        moved = rotated(other, seq, rng, at_least=max(1, n // 4))
        nulls.append(correlate(a, prepare(moved, "shifted codes", min_firings)).r)
    fired = np.tile(match.n_fired, DRAWS)
    by_bin = null_by_bin(np.concatenate(nulls), fired, edges, (QUANTILE,))[:, 0]
    return Found(match.r, per_latent(by_bin, match.n_fired, edges), match.partner, match.n_cofire)
