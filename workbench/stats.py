"""Numbers with what they rest on: intervals by resampling sequences (tokens of one are not independent), and shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A number with what it rests on; ``low``/``high`` bound the central 95 % of the bootstrap, None where there is
    none.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    unit: str  # what n counts
    interval: str = "bootstrap over sequences, 95 %"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes null."""
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(self).items()}


def interval95(draws: Any, axis: int | None = None) -> tuple[Any, Any]:
    """(low, high) of the central 95 % of draws, along an axis; NaN draws count as none, no draws at all give NaN."""
    values = np.asarray(draws, np.float64)
    if values.size == 0:
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [0.025, 0.975], axis=axis)
    return (float(low), float(high)) if axis is None else (low, high)


def resample_weights(n: int, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """[resamples, n] how often each unit is drawn, rows sum to n."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def ratio_estimates(
    sums: Mapping[str, np.ndarray],
    formulas: Mapping[str, Callable[[dict[str, np.ndarray]], np.ndarray]],
    n_of: Mapping[str, tuple[int, str]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Estimate]:
    """Estimates of quantities that are functions of sums over sequences.

    Args:
        sums: name -> [n_sequences] contributions of each sequence.
        formulas: quantity -> function of a dict name -> total (arrays over resamples are passed through elementwise).
        n_of: quantity -> (n, unit).
    """
    n = len(next(iter(sums.values())))
    total = {k: np.asarray(v, np.float64).sum() for k, v in sums.items()}
    weights = resample_weights(n, resamples=resamples, seed=seed) if n > 1 else None
    drawn = None if weights is None else {k: weights @ np.asarray(v, np.float64) for k, v in sums.items()}
    out = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, formula in formulas.items():
            low = high = None
            if drawn is not None:
                spread = np.asarray(formula(drawn), np.float64)
                spread = spread[np.isfinite(spread)]
                if len(spread) > resamples // 2:
                    low, high = interval95(spread)
            out[name] = Estimate(float(formula(total)), low, high, *n_of[name])
    return out


def wilson(hits: int, n: int, unit: str) -> Estimate:
    """A share with its Wilson score interval (95 %)."""
    from scipy.stats import binomtest

    if n == 0:
        return Estimate(float("nan"), None, None, 0, unit, "none")
    found = binomtest(hits, n).proportion_ci(method="wilson")
    return Estimate(hits / n, float(found.low), float(found.high), n, unit, f"Wilson, 95 %, over {unit}")
