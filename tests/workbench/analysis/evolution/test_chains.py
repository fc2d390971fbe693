"""Chains of latents on planted codes: who is there at which snapshot is known."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from crosscoders.evolution import turning_point
from workbench.analysis.comparison.given_token import TokenCells, TokenConditionalSide
from workbench.analysis.evolution.chains import chains, correlations, kinship

N, F, S, BORN = 6000, 24, 6, 3
IDS = np.random.default_rng(0).integers(0, 40, N)
CELLS = TokenCells.of(IDS, np.repeat(np.arange(N // 50), 50))


def planted(*, noise: float = 0.1) -> list[list[np.ndarray]]:
    """Dense codes [N, F] of two seeds at every snapshot: the first half of the latents is there throughout, the second
    from snapshot :data:`BORN` on; before, its place is taken by latents of nothing, each snapshot its own. Seeds number
    their latents in orders of their own, and so does every snapshot.
    """
    rng = np.random.default_rng(1)

    def code() -> np.ndarray:
        return rng.random((N, F // 2)) * (rng.random((N, F // 2)) < 0.1)

    old, new = code(), code()
    out = []
    for _ in range(2):
        of_seed = []
        for s in range(S):
            x = np.concatenate([old, new if s >= BORN else code()], axis=1)
            x = x * (1 + noise * rng.standard_normal(x.shape))
            of_seed.append(x[:, rng.permutation(F)])
        out.append(of_seed)
    return out


def sides(codes: list[np.ndarray], order: np.ndarray | None = None) -> list[TokenConditionalSide]:
    rows = CELLS.rows if order is None else CELLS.rows[order]
    return [TokenConditionalSide(sp.csr_array(x[rows]), CELLS, "planted", 20) for x in codes]


def test_chains_find_who_was_born_and_when():
    ours, theirs = planted()
    strangers = sides(theirs, CELLS.exchanged(np.random.default_rng(2)))
    back = chains(sides(ours)[-1], sides(theirs), strangers, backwards=True)
    assert back.first == S - 1 and back.curves.shape == (F, S) and back.known.all()
    assert (back.curves <= back.at_once + 1e-12).all() and (back.strangers < 0.2).all()
    for chained in (True, False):
        assert [back.absent(s, chained=chained) for s in range(S)] == [0.5] * BORN + [0.0] * (S - BORN)
    forth = chains(sides(ours)[0], sides(theirs), strangers, backwards=False)
    # half of the first snapshot's latents are another seed's too; of those none is lost
    assert forth.known.sum() == F // 2 and forth.absent(S - 1) == 0


def test_strangers_are_no_chain():
    ours, theirs = planted()
    exchanged = sides(theirs, CELLS.exchanged(np.random.default_rng(3)))
    assert not chains(sides(ours)[-1], exchanged, exchanged, backwards=True).known.any()


def test_what_only_the_token_says_is_no_kinship():
    """Two seeds' latents that read a word, and nothing else, have nothing in common once it is known."""
    rng = np.random.default_rng(4)
    word = (IDS[:, None] == np.arange(F)) * 1.0
    a, b = (sides([word * rng.random(word.shape)])[0] for _ in range(2))
    raw = np.corrcoef(word[:, 0] * rng.random(N), word[:, 0] * rng.random(N))[0, 1]
    assert raw > 0.5 and np.abs(correlations(a, b)).max() < 0.25


def test_kinship_turns_where_half_of_the_latents_are_born():
    ours, theirs = planted()
    k = kinship(sides(ours), sides(theirs))
    assert np.allclose(k, k.T) and turning_point(k).index == BORN
