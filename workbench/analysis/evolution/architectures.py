"""Which concepts come first in which model: latents of one crosscoder over the snapshots of several models.

All models read the same tokens, so a latent of the crosscoder has a curve over each model's training. Three curves,
because one of them has a trap: *norm* (the decoder's, see :mod:`workbench.analysis.evolution.own_codes`), *own* (how
far the model's own firings agree with another's finished ones) and *explained* (variance where the others find it).
A latent *emerges* where its curve first reaches half of its largest value in that model, between two snapshots by
linear interpolation along the doublings of the training step; two models are held against each other at the snapshots
both have (:func:`workbench.results.lines.in_common`). A latent is *shared* where the own firings of every model's
last snapshot agree with the others' (:data:`SHARED`).

Statements about the order in time are held against two nulls: *shuffled*, snapshots in random order within every
model, which keeps each curve's values and destroys its time; and *exchanged*, the models' labels swapped for a random
half of the latents, which keeps time and destroys what belongs to a model.

Axes: K snapshots of a model, F latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from workbench.analysis.evolution.emergence import Null, bootstrap, null_of, partial_spearman
from workbench.analysis.evolution.orders import claim_row
from workbench.analysis.evolution.own_codes import OwnCodes
from workbench.results.lines import MIN_SHARED, NEAR, Line, emergence, in_common
from workbench.stats import Estimate

Floats = npt.NDArray[np.float64]
SHARED = 0.3  # agreement of own firings at the last snapshots, above chance
MIN_FIRED = 30  # firings from which agreement is judged
MEASURES = ("own", "norm", "explained")
PARTS = ("least", "middle", "most")  # thirds of the shared latents by how much of them the token leaves open


def last_of_others(lines: Sequence[Line], n_sources: int) -> list[list[int]]:
    """For every source, the last sources of all models but its own."""
    out: list[list[int]] = [[] for _ in range(n_sources)]
    for line in lines:
        for s in line.sources:
            out[s] = [other.sources[-1] for other in lines if other is not line]
    return out


@dataclass(frozen=True)
class Pair:
    """Two models on one crosscoder: own curves [K, F] of its shared latents, what the token leaves open of each latent
    [F] (1 - v_token) and how often it fires.
    """

    first: Line
    second: Line
    curves: tuple[Floats, Floats]
    open_F: Floats
    n_fired: Floats

    def thirds(self) -> npt.NDArray[np.int64]:
        """[F] 0, 1, 2: least to most open."""
        order = np.argsort(np.argsort(self.open_F, kind="stable"), kind="stable")
        return (3 * order // len(order)).astype(np.int64)

    def lag(self) -> Floats:
        """[F] doublings by which the second model is later."""
        a, b = self.curves
        return emergence(b, self.second.time) - emergence(a, self.first.time)

    def matched(self) -> bool:
        """Whether both have as many snapshots, at the same steps but for the last."""
        a, b = self.first.time, self.second.time
        return len(a) == len(b) and bool((np.abs(a - b)[:-1] <= NEAR).all())


def later_with_context(lag: Floats, pair: Pair) -> float:
    """Mean lag of the third of latents that the token leaves most open minus that of the third it leaves least open."""
    third = pair.thirds()
    return float(np.nanmean(lag[third == 2]) - np.nanmean(lag[third == 0]))


def overall(lag: Floats, pair: Pair) -> float:
    """Median lag."""
    return float(np.nanmedian(lag))


def same_order(pair: Pair, curves: tuple[Floats, Floats] | None = None) -> float:
    """Spearman correlation of the emergence in both models, frequency partialled out."""
    a, b = curves or pair.curves
    times = emergence(a, pair.first.time), emergence(b, pair.second.time)
    return partial_spearman(*times, np.log(pair.n_fired), n=1).value


def shuffled(pair: Pair, *, n: int, seed: int) -> Null:
    """:func:`same_order` beside its values with the snapshots of each model in random order."""
    rng = np.random.default_rng(seed)
    a, b = pair.curves
    draws = [same_order(pair, (rng.permutation(a), rng.permutation(b))) for _ in range(n)]
    return null_of(same_order(pair), np.array(draws))


def exchanged(pair: Pair, statistic: Callable[[Floats, Pair], float], *, n: int, seed: int) -> Null:
    """A statistic of lags [F] beside its values with the two models' labels swapped for a random half of the latents.

    Raises:
        ValueError: the models have no snapshots at the same steps, so that a lag may be one of the snapshots.
    """
    if not pair.matched():
        raise ValueError(
            f"{pair.first.model} and {pair.second.model} have no snapshots (saved training steps) in common"
        )
    rng, lag = np.random.default_rng(seed), pair.lag()
    draws = [statistic(np.where(rng.random(len(lag)) < 0.5, lag, -lag), pair) for _ in range(n)]
    return null_of(statistic(lag, pair), np.array(draws))


def shared_latents(own: OwnCodes, lines: Sequence[Line]) -> npt.NDArray[np.bool_]:
    """[F] which latents every model's last snapshot finds where the others do."""
    last = own.agreement[[line.sources[-1] for line in lines]]
    return np.asarray((np.nan_to_num(last, nan=-1).min(axis=0) >= SHARED) & (own.n_fired >= MIN_FIRED))


def pair_of(first: Line, second: Line, own_SF: npt.ArrayLike, chosen: np.ndarray, table: pd.DataFrame) -> Pair:
    """Two models with the curves of some latents, at the snapshots they have in common where these are enough;
    ``table`` has the columns v_token and n_fired.
    """
    first, second = in_common(first, second) or (first, second)
    own = np.asarray(own_SF, np.float64)[:, chosen]
    left = 1 - np.clip(np.nan_to_num(table["v_token"].to_numpy(np.float64)[chosen]), 0, 1)
    n = np.maximum(table["n_fired"].to_numpy(np.float64)[chosen], 1)
    return Pair(first, second, (own[list(first.sources)], own[list(second.sources)]), left, n)


def architecture_table(
    own: OwnCodes, norms_SF: npt.ArrayLike, lines: Sequence[Line], table: pd.DataFrame
) -> pd.DataFrame:
    """A row per latent and model: the step at which it emerges by each measure (missing where it never does), the
    agreement at the last snapshot; whether the latent is shared, and what the token leaves open of it.
    """
    shared = shared_latents(own, lines)
    left = 1 - table["v_token"].clip(0, 1)
    curves = {"own": own.agreement, "norm": np.asarray(norms_SF), "explained": own.explained}
    parts = []
    for line in lines:
        found = {f"emergence_{m}": 2 ** emergence(curves[m][list(line.sources)], line.time) for m in MEASURES}
        columns = {"latent": np.arange(len(shared)), "model": line.model, "shared": shared, "open": left} | found
        parts.append(pd.DataFrame(columns | {"agreement": own.agreement[line.sources[-1]], "n_fired": own.n_fired}))
    return pd.concat(parts, ignore_index=True)


def architecture_claims(
    own: OwnCodes, norms_SF: npt.ArrayLike, lines: Sequence[Line], table: pd.DataFrame, *, n: int, seed: int
) -> list[dict[str, Any]]:
    """Statements about every pair of models over the latents that these two share, each with its interval over latents
    and its null. A third model may share few of them.
    """
    rows = []
    for first, second in combinations(lines, 2):
        chosen = np.flatnonzero(shared_latents(own, (first, second)))
        names = f"{first.model} and {second.model}"
        if len(chosen) < MIN_SHARED:
            few = Estimate(float("nan"), None, None, len(chosen), "latents", "none")
            rows.append(claim_row(f"shared latents emerge in the same order in {names}", few, "too few"))
            continue
        pair, common = pair_of(first, second, own.agreement, chosen, table), in_common(first, second)
        fewer = len(pair.first.steps) < max(len(first.steps), len(second.steps))
        at = f", at {len(pair.first.steps)} snapshots in common" if fewer and common else ""
        rows += _of_pair(pair, names, at, lags=common is not None, n=n, seed=seed)
    chosen = np.flatnonzero(shared_latents(own, lines))
    for line in lines:
        a, b = (emergence(np.asarray(c)[list(line.sources)][:, chosen], line.time) for c in (own.agreement, norms_SF))
        r = partial_spearman(a, b, seed=seed)
        claim = f"{line.model}: emergence by own firings agrees with emergence by decoder norm (Spearman)"
        rows.append(claim_row(claim, r, "found" if (r.low or 0) > 0.5 else "not found"))
    return rows


def _of_pair(pair: Pair, names: str, at: str, *, lags: bool, n: int, seed: int) -> list[dict[str, Any]]:
    """Statements about two models; ``at`` says on which snapshots where these are not all. ``lags``: whether they have
    enough in common to say that one is later; an order needs none.
    """
    rows = []
    lag, third = pair.lag(), pair.thirds()
    times = emergence(pair.curves[0], pair.first.time), emergence(pair.curves[1], pair.second.time)
    order = partial_spearman(*times, np.log(pair.n_fired), seed=seed)
    null = shuffled(pair, n=n, seed=seed)
    claim = f"shared latents emerge in the same order in {names} (Spearman, frequency partialled out{at})"
    rows.append(_judged(claim, order, null, "snapshots shuffled within a model"))
    if not lags:
        return rows
    for claim, statistic, samples in (
        (f"{pair.second.model} is later than {pair.first.model} (median, doublings of the step{at})", overall, (lag,)),
        (
            f"what the token leaves open is later in {pair.second.model} than in {pair.first.model}, beyond what it"
            f" tells (doublings of the step{at})",
            later_with_context,
            (lag[third == 0], lag[third == 2]),
        ),
    ):
        estimate = bootstrap(_median if len(samples) == 1 else _difference, *samples, seed=seed)
        rows.append(_judged(claim, estimate, exchanged(pair, statistic, n=n, seed=seed), "models' labels exchanged"))
    return rows


def _median(x: Floats) -> float:
    return float(np.nanmedian(x))


def _difference(first: Floats, second: Floats) -> float:
    return float(np.nanmean(second) - np.nanmean(first))


def _judged(claim: str, estimate: Estimate, null: Null, kind: str) -> dict[str, Any]:
    found = (estimate.low or 0) > 0 and null.observed > null.high
    return claim_row(claim, estimate, "found" if found else "not found", null, kind)
