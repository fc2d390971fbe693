"""Matches across layers: every layer of one model against every layer of the other, and where in depth partners lie.

MPPC over models takes the maximum over all layers of the other model, so the model with more layers offers more
candidates and its partners look better by chance alone. :func:`match_layers` therefore keeps every layer pair, and
:func:`even_candidates` gives both directions the same number of candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from sae.errors import UsageError
from workbench.analysis.comparison.codes import Side, prepare
from workbench.analysis.correlation import Codes, Floats, Ints, Match, correlate
from workbench.stats import interval95

HOLD_BYTES = 2 * 2**30  # prepared layers kept between pairs


@dataclass(frozen=True)
class LayerBest:
    """Best partner of every latent of one layer, over all layers of the other side. Arrays are [F];
    layers are indices.
    """

    r: Floats
    layer: Ints  # -1 where r is NaN
    partner: Ints
    n_cofire: Ints
    second_r: Floats
    second_layer: Ints
    second: Ints
    n_fired: Ints


@dataclass(frozen=True)
class LayerMatches:
    """Results of all layer pairs; ``pairs[i, j]`` matches layer ``layers_a[i]`` with layer ``layers_b[j]``."""

    layers_a: tuple[Any, ...]
    layers_b: tuple[Any, ...]
    pairs: dict[tuple[int, int], Match]
    n_tokens: int

    def best_a(self) -> list[LayerBest]:
        """For every layer of a, each latent's best partner over all layers of b."""
        return [best_over([self.pairs[i, j] for j in range(len(self.layers_b))]) for i in range(len(self.layers_a))]

    def best_b(self) -> list[LayerBest]:
        """The other direction."""
        return [
            best_over([_reverse(self.pairs[i, j]) for i in range(len(self.layers_a))])
            for j in range(len(self.layers_b))
        ]

    def map(self, statistic: Callable[[Floats], float] = np.mean, *, reverse: bool = False) -> Floats:
        """[n_layers_a, n_layers_b] of a statistic of the per-pair MPPC (NaN latents left out; NaN
        where none is left).
        """
        out = np.full((len(self.layers_a), len(self.layers_b)), np.nan)
        for (i, j), m in self.pairs.items():
            r = (_reverse(m) if reverse else m).r
            if np.isfinite(r).any():
                out[i, j] = statistic(r[np.isfinite(r)])
        return out


def _reverse(m: Match) -> Match:
    assert m.reverse is not None
    return m.reverse


def match_layers(
    layers_a: Mapping[Any, Codes],
    layers_b: Mapping[Any, Codes],
    *,
    min_firings: int = 1,
    top: int = 0,
    workers: int | None = None,
    only_a: Mapping[Any, Ints] | None = None,
    only_b: Mapping[Any, Ints] | None = None,
    on_pair: Callable[[], None] = lambda: None,
) -> LayerMatches:
    """:func:`~workbench.analysis.correlation.max_pairwise_correlation` of every layer of a with every layer of b.

    The mappings may load a layer's codes when it is asked for: one layer of a is held at a time, and layers of b are
    kept prepared up to 2 GiB. ``only_*`` restrict the latents of a layer that take part (see :func:`even_candidates`).
    """
    if not layers_a or not layers_b:
        raise UsageError("match_layers needs at least one layer of codes on either side; one list is empty.")
    held: dict[Any, Side] = {}
    size = 0

    def side_b(key: Any) -> Side:
        nonlocal size
        if key in held:
            return held[key]
        side = _side(layers_b[key], f"b, layer {key}", min_firings, only_b, key)
        cost = 29 * int(side.n_fired.sum())  # bytes per non-zero of the three forms a side is kept in
        if size + cost <= HOLD_BYTES:
            held[key], size = side, size + cost
        return side

    pairs: dict[tuple[int, int], Match] = {}
    n_tokens = 0
    for i, ka in enumerate(layers_a):
        a = _side(layers_a[ka], f"a, layer {ka}", min_firings, only_a, ka)
        n_tokens = a.n_tokens
        for j, kb in enumerate(layers_b):
            pairs[i, j] = correlate(a, side_b(kb), top=top, workers=workers)
            on_pair()
    return LayerMatches(tuple(layers_a), tuple(layers_b), pairs, n_tokens)


def _side(codes: Codes, name: str, min_firings: int, only: Mapping[Any, Ints] | None, key: Any) -> Side:
    side = prepare(codes, name, min_firings)
    return side.restricted(only[key]) if only is not None else side


def best_over(matches: Sequence[Match]) -> LayerBest:
    """Best and second best over several layers of partners; ties go to the earlier layer."""
    r = np.stack([m.r for m in matches] + [m.second_r for m in matches])  # [2 L, F]
    ids = np.stack([m.partner for m in matches] + [m.second for m in matches])
    layer = np.tile(np.arange(len(matches)), 2)
    order = np.argsort(-np.where(np.isnan(r), -np.inf, r), axis=0, kind="stable")
    f = np.arange(r.shape[1])
    first, second = order[0], order[1]

    def pick(which: NDArray[np.intp], values: NDArray[Any]) -> NDArray[Any]:
        return values[which, f]

    r1, r2 = pick(first, r), pick(second, r)
    cofire = np.stack([m.n_cofire for m in matches] * 2)
    return LayerBest(
        r=r1,
        layer=np.where(np.isnan(r1), -1, layer[first]),
        partner=pick(first, ids),
        n_cofire=np.where(np.isnan(r1), 0, pick(first, cofire)),
        second_r=r2,
        second_layer=np.where(np.isnan(r2), -1, layer[second]),
        second=pick(second, ids),
        n_fired=matches[0].n_fired,
    )


def even_candidates(matches: LayerMatches, *, seed: int) -> tuple[dict[Any, Ints], dict[Any, Ints]]:
    """Latents of either side, per layer, such that both sides offer the same number of candidates.

    The larger side's living latents (those with a finite r) are thinned at random, without regard to layer.
    """
    alive_a = _alive([best_over([matches.pairs[i, 0]]) for i in range(len(matches.layers_a))])
    alive_b = _alive([best_over([_reverse(matches.pairs[0, j])]) for j in range(len(matches.layers_b))])
    n = min(len(alive_a), len(alive_b))
    rng = np.random.default_rng(seed)

    def thin(alive: Ints, layers: tuple[Any, ...]) -> dict[Any, Ints]:
        keep = alive[np.sort(rng.choice(len(alive), n, replace=False))]
        return {key: keep[keep[:, 0] == i, 1] for i, key in enumerate(layers)}

    return thin(alive_a, matches.layers_a), thin(alive_b, matches.layers_b)


def _alive(best: Sequence[LayerBest]) -> Ints:
    """[n, 2] (layer index, latent) of latents with a finite r."""
    return np.concatenate(
        [
            np.stack([np.full(int(k.sum()), i), np.flatnonzero(k)], axis=1)
            for i, k in enumerate(np.isfinite(b.r) for b in best)
        ]
    )


@dataclass(frozen=True)
class DepthMap:
    """Where partners lie. ``counts[i, j]``: latents of layer i of a whose partner (r >= level) is in layer j of b."""

    counts: Ints
    level: float
    rank_correlation: float  # Spearman's rho of the relative depths (l + 1) / L; NaN where a depth does not vary
    interval: tuple[float, float]  # 95 %, bootstrap over latents
    n: int


def depth_map(
    best: Sequence[LayerBest], n_layers_b: int, *, level: float = 0.5, seed: int = 0, n_boot: int = 1000
) -> DepthMap:
    """Depth of a against depth of the best partner, for latents matched with r of at least ``level``."""
    counts = np.zeros((len(best), n_layers_b), dtype=np.int64)
    for i, b in enumerate(best):
        counts[i] = np.bincount(b.layer[(b.r >= level)], minlength=n_layers_b)
    rows, columns = np.nonzero(counts)
    pairs = np.stack([np.repeat(rows, counts[rows, columns]), np.repeat(columns, counts[rows, columns])])
    rho = spearman(pairs[0], pairs[1])
    rng = np.random.default_rng(seed)
    boot = (
        [
            spearman(pairs[0, at], pairs[1, at])
            for at in (rng.integers(0, pairs.shape[1], pairs.shape[1]) for _ in range(n_boot))
        ]
        if pairs.shape[1]
        else []
    )
    interval = interval95([x for x in boot if np.isfinite(x)])
    return DepthMap(counts, level, rho, interval, int(pairs.shape[1]))


def spearman(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Spearman's rank correlation; NaN where either side is constant or fewer than three pairs are given."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(scipy.stats.rankdata(x), scipy.stats.rankdata(y))[0, 1])


def shifted_rows(seq: NDArray[np.integer], pos: NDArray[np.integer], shift: int) -> tuple[Ints, Ints]:
    """Rows (t, t + shift) that lie in one sequence: a at t is compared with b at t + shift.

    ``seq`` and ``pos`` give each stored row's sequence and position, in order (rows of a sequence are consecutive).
    """
    n = len(seq)
    t = np.arange(max(0, -shift), min(n, n - shift))
    same = (seq[t] == seq[t + shift]) & (pos[t + shift].astype(np.int64) - pos[t].astype(np.int64) == shift)
    return t[same], t[same] + shift
