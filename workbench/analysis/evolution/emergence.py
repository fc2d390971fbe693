"""When latents emerge over training snapshots, and what that is worth: tables, permutation nulls, intervals.

The table has one row per latent. Every statement about *order* ("token latents before induction latents", "complex ones
later") is held against two things: a bootstrap interval over latents, and the same statistic after the snapshots'
labels were shuffled. The shuffled mean is shown and is not zero in general: with first-crossing emergence, latents of
long lifespan cross early in any order, so a class that lives longer also "emerges earlier" by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from crosscoders import evolution as ev
from workbench.stats import Estimate, interval95

Floats = npt.NDArray[np.float64]


def _step(index: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> pd.Series:
    """Training steps of source indices; -1 becomes a missing value, since 0 is a real step."""
    return pd.Series(np.where(index >= 0, steps[np.maximum(index, 0)], 0), dtype="Int64").mask(index < 0)


def emergence_table(
    norms_SF: npt.ArrayLike,
    steps: Sequence[int],
    *,
    cosines_FSS: npt.NDArray[np.float32] | None = None,
    projections_SF: npt.NDArray[np.float32] | None = None,
    raw_norms_SF: npt.ArrayLike | None = None,
    n_fired: npt.ArrayLike | None = None,
) -> pd.DataFrame:
    """One row per latent: emergence at three thresholds, peak, decay, lifespan, class, rotation, projection, turning
    point.

    Args:
        norms_SF: decoder norms in training scale, S snapshots in training order.
        steps: the S training steps. Columns ending in ``_step`` are steps, those ending in ``_index`` source positions.
        n_fired: times each latent fired in the sample; 0 makes ``alive`` false.
    """
    norms = np.asarray(norms_SF, dtype=np.float32)
    at = np.asarray(steps, dtype=np.int64)
    if len(at) != len(norms):
        raise ValueError(f"{len(norms)} sources and {len(at)} steps")
    r = ev.relative_norms(norms)
    table = pd.DataFrame(
        {"latent": np.arange(norms.shape[1]), "class": ev.classify(r), "max_norm": norms.max(0), "first_relative": r[0]}
    )
    for t in ev.THRESHOLDS:
        index = ev.first_above(r, t)
        table[f"emergence_{t}_index"] = index
        table[f"emergence_{t}_step"] = _step(index, at)
    for name, index in (("peak", ev.peak(r)), ("decay", ev.decay(r))):
        table[f"{name}_index"] = index
        table[f"{name}_step"] = _step(index, at)
    table["lifespan"] = ev.lifespan(r)
    if raw_norms_SF is not None:
        raw = np.asarray(raw_norms_SF, dtype=np.float32)
        table["peak_raw_step"] = _step(ev.peak(ev.relative_norms(raw)), at)
        table["max_norm_raw"] = raw.max(0)
    if cosines_FSS is not None:
        S = len(at)
        table["cos_first_final"] = cosines_FSS[:, 0, -1]
        adjacent = cosines_FSS[:, np.arange(S - 1), np.arange(1, S)]
        known = (~np.isnan(adjacent)).sum(axis=1)
        table["cos_adjacent_mean"] = np.where(
            known > 0, np.nan_to_num(adjacent).sum(axis=1) / np.maximum(known, 1), np.nan
        )
        table["turning_step"] = _step(ev.turning_points(cosines_FSS), at)
    if projections_SF is not None:
        table["projection_first"] = projections_SF[0]
        table["projection_final"] = projections_SF[-1]
    if n_fired is not None:
        table["n_fired"] = np.asarray(n_fired, dtype=np.int64)
        table["alive"] = table["n_fired"] > 0
    return table


@dataclass(frozen=True)
class Null:
    """A statistic beside its null: ``p`` is two-sided with the add-one rule; ``low``/``high`` are the null's 2.5 and
    97.5 %.
    """

    observed: float
    mean: float
    sd: float
    low: float
    high: float
    p: float
    n: int

    @property
    def outside(self) -> bool:
        """Whether the observed value lies outside the null's central 95 %."""
        return not (self.low <= self.observed <= self.high)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest; a value that is not a number becomes None."""
        return {k: (None if isinstance(v, float) and not np.isfinite(v) else v) for k, v in asdict(self).items()}


def null_of(observed: float, draws: Floats) -> Null:
    """A statistic beside draws of it under its null; draws that are no number count as none."""
    ok = draws[np.isfinite(draws)]
    if not len(ok) or not np.isfinite(observed):
        return Null(observed, float("nan"), float("nan"), float("nan"), float("nan"), 1.0, len(ok))
    centre = ok.mean()
    p = (1 + (np.abs(ok - centre) >= abs(observed - centre) - 1e-12).sum()) / (1 + len(ok))
    low, high = interval95(ok)
    return Null(float(observed), float(centre), float(ok.std()), float(low), float(high), float(p), len(ok))


def snapshot_null(
    statistic: Callable[[npt.NDArray[np.float32]], float], norms_SF: npt.ArrayLike, *, n: int = 500, seed: int = 0
) -> Null:
    """``statistic`` of the relative norms [S, F], against the same over ``n`` shuffles of the snapshots' labels.

    One shuffle moves whole snapshots, so every latent keeps its set of norms (hence its lifespan) and its company.
    """
    r = ev.relative_norms(norms_SF)
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(r[rng.permutation(len(r))]) for _ in range(n)])
    return null_of(statistic(r), draws)


def class_null(
    emergence: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, *, n: int = 500, seed: int = 0
) -> Null:
    """Median emergence of ``second`` minus that of ``first`` (boolean masks over latents), against shuffled class
    labels.
    """
    e, a, b = np.asarray(emergence, dtype=np.float64), np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    pool = np.concatenate([e[a], e[b]])
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n):
        p = rng.permutation(pool)
        draws.append(_gap(p[: a.sum()], p[a.sum() :]))
    return null_of(_gap(e[a], e[b]), np.array(draws))


def _gap(first: Floats, second: Floats) -> float:
    return float(np.median(second) - np.median(first)) if len(first) and len(second) else float("nan")


def emergence_gap(
    first: npt.ArrayLike, second: npt.ArrayLike, threshold: float = 0.5
) -> Callable[[npt.NDArray[np.float32]], float]:
    """Statistic for :func:`snapshot_null`: median first-crossing index of ``second`` minus that of ``first`` (masks
    over latents).
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)

    def statistic(relative_SF: npt.NDArray[np.float32]) -> float:
        e = ev.first_above(relative_SF, threshold).astype(np.float64)
        return _gap(e[a & (e >= 0)], e[b & (e >= 0)])

    return statistic


def _estimate(value: float, low: float = float("nan"), high: float = float("nan"), *, n: int) -> Estimate:
    return Estimate(float(value), float(low), float(high), n, "latents", "bootstrap over latents, 95 %")


def bootstrap(
    statistic: Callable[..., float], *samples: npt.ArrayLike, n: int = 1000, seed: int = 0, paired: bool = False
) -> Estimate:
    """``statistic(*samples)`` with a percentile interval; samples are resampled apart, or row by row
    where ``paired``.
    """
    arrays = [np.asarray(s) for s in samples]
    size = len(arrays[0]) if paired else sum(map(len, arrays))
    if any(len(a) == 0 for a in arrays):
        return _estimate(float("nan"), n=size)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n):
        if paired:
            rows = rng.integers(0, len(arrays[0]), len(arrays[0]))
            draws.append(statistic(*(a[rows] for a in arrays)))
        else:
            draws.append(statistic(*(a[rng.integers(0, len(a), len(a))] for a in arrays)))
    ok = np.array(draws)[np.isfinite(draws)]
    low, high = interval95(ok)
    return _estimate(statistic(*arrays), low, high, n=size)


def median_gap(first: npt.ArrayLike, second: npt.ArrayLike, *, n: int = 1000, seed: int = 0) -> Estimate:
    """Median of ``second`` minus median of ``first`` (emergences of two groups of latents) with its interval."""
    return bootstrap(_gap, np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64), n=n, seed=seed)


def _residual(y: Floats, on: list[Floats]) -> Floats:
    X = np.column_stack([np.ones(len(y)), *on])
    return y - X @ np.linalg.lstsq(X, y, rcond=None)[0]


def _ranks(x: npt.ArrayLike) -> Floats:
    return np.asarray(pd.Series(np.asarray(x, dtype=np.float64)).rank(), dtype=np.float64)


def partial_spearman(
    x: npt.ArrayLike, y: npt.ArrayLike, *given: npt.ArrayLike, n: int = 1000, seed: int = 0
) -> Estimate:
    """Spearman correlation of x and y after the ranks of ``given`` were regressed out of both; rows with a NaN are left
    out.
    """
    columns = [np.asarray(c, dtype=np.float64) for c in (x, y, *given)]
    keep = np.all([np.isfinite(c) for c in columns], axis=0)
    columns = [c[keep] for c in columns]

    def r(*c: Floats) -> float:
        ranked = [_ranks(v) for v in c]
        a, b = (_residual(v, ranked[2:]) for v in ranked[:2])
        scale = np.sqrt((a @ a) * (b @ b))
        return float(a @ b / scale) if scale > 1e-9 else float("nan")

    if keep.sum() < 4 + len(given):
        return _estimate(float("nan"), n=int(keep.sum()))
    return bootstrap(r, *columns, n=n, seed=seed, paired=True)
