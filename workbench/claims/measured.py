"""A number with what it rests on: one value per independent unit where there are such, an interval by Student's t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

NORMAL95 = 1.959963984540054
EXACT_UNITS = 12  # sign flips of more units than this are not enumerated


def _t() -> Any:
    """Student's t; loaded when it is needed, for pages show what was measured and measure nothing."""
    from scipy.stats import t

    return t


@dataclass(frozen=True)
class Measured:
    """An estimate with its 95 % interval (None where it has none) and the number of independent units behind it.

    ``samples`` holds one number per unit (a seed, a layer, a run) where the estimate is their mean; an estimate that
    was resampled elsewhere (over prompts, say) has an interval and no samples.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    unit: str = ""
    samples: tuple[float, ...] = ()

    @classmethod
    def of(cls, samples: Sequence[float] | np.ndarray, *, unit: str = "") -> Measured:
        """Mean of one number per unit with its Student t interval; none from a single unit.

        The percentile bootstrap of three numbers covers 74 %, not 95 %; t covers 95 %.
        """
        x = np.asarray(samples, np.float64)
        x = x[np.isfinite(x)]
        if len(x) == 0:
            return cls(float("nan"), None, None, 0, unit)
        value, given = float(x.mean()), tuple(float(v) for v in x)
        if len(x) == 1:
            return cls(value, None, None, 1, unit, given)
        half = float(_t().ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)
        return cls(value, value - half, value + half, len(x), unit, given)

    @classmethod
    def from_dict(cls, value: dict[str, Any], unit: str = "") -> Measured:
        """From the ``{"value", "low", "high", "n"}`` that other analyses write; missing numbers become NaN or None."""
        v = value.get("value", value.get("mean"))
        return cls(
            float("nan") if v is None else float(v),
            value.get("low"),
            value.get("high"),
            int(value.get("n") or 0),
            unit or str(value.get("unit", "")),
        )

    @property
    def known(self) -> bool:
        """Whether there is a number at all."""
        return bool(np.isfinite(self.value)) and self.n > 0

    @property
    def error(self) -> float:
        """Standard error: of the mean of the samples, or what the interval implies; NaN where there is neither."""
        if len(self.samples) > 1:
            return float(np.std(self.samples, ddof=1) / len(self.samples) ** 0.5)
        if self.low is None or self.high is None:
            return float("nan")
        return (self.high - self.low) / 2 / NORMAL95

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the error: units less one, or infinitely many where it was resampled elsewhere."""
        return float(len(self.samples) - 1) if len(self.samples) > 1 else float("inf")

    def minus(self, other: Measured) -> Measured:
        """The difference: unit by unit where both have as many samples (paired), by Welch's t otherwise."""
        if len(self.samples) == len(other.samples) > 1:
            return Measured.of(np.subtract(self.samples, other.samples), unit=self.unit)
        errors = [(m.error if np.isfinite(m.error) else 0.0, m.freedom) for m in (self, other)]
        error = float(np.hypot(errors[0][0], errors[1][0]))
        value, n = self.value - other.value, min(self.n, other.n)
        if not error:
            return Measured(value, None, None, n, self.unit)
        inverse = sum((e / error) ** 4 / f for e, f in errors)  # Welch and Satterthwaite; 0: both intervals are normal
        half = float(_t().ppf(0.975, 1 / inverse)) * error if inverse else NORMAL95 * error
        return Measured(value, value - half, value + half, n, self.unit)

    def p_above(self, level: float) -> float:
        """One-sided p value of the hypothesis that the value is at most ``level``; NaN without an error."""
        if not np.isfinite(self.error):
            return float("nan")
        if self.error == 0:
            return float(self.value <= level)
        t = (self.value - level) / self.error
        return float(_t().sf(t, self.freedom))  # of infinitely many degrees of freedom: the normal distribution

    def p_below(self, level: float) -> float:
        """One-sided p value of the hypothesis that the value is at least ``level``."""
        return self.times(-1).p_above(-level)

    def times(self, factor: float) -> Measured:
        """The number in another unit, or mirrored."""
        ends = [None if e is None else e * factor for e in (self.low, self.high)]
        low, high = ends if factor >= 0 else ends[::-1]
        return replace(
            self, value=self.value * factor, low=low, high=high, samples=tuple(s * factor for s in self.samples)
        )

    def moved_to(self, value: float, rng: np.random.Generator) -> Measured:
        """A new draw of the same measurement if the truth were ``value``: as many units, spread as these are."""
        if len(self.samples) > 1:
            spread = float(np.std(self.samples, ddof=1))
            return Measured.of(rng.normal(value, spread, len(self.samples)), unit=self.unit)
        if not np.isfinite(self.error):
            return replace(self, value=value, samples=(value,) if self.samples else ())
        at = float(rng.normal(value, self.error))
        return replace(self, value=at, low=at - NORMAL95 * self.error, high=at + NORMAL95 * self.error)

    def exact_p(self, level: float) -> float:
        """One-sided exact sign-flip p value of the mean above ``level``; NaN where there are too few or too many units.

        With n units it cannot be less than 2^-n: three seeds alone prove nothing at 5 %.
        """
        x = np.asarray(self.samples) - level
        if not 2 <= len(x) <= EXACT_UNITS:
            return float("nan")
        signs = 1 - 2 * (np.arange(2 ** len(x))[:, None] >> np.arange(len(x)) & 1)  # [2^n, n], every pattern once
        return float(np.mean(signs @ x >= x.sum() - 1e-12))

    def as_dict(self) -> dict[str, Any]:
        """Plain values; what is not a number becomes None, samples are left out."""
        kept = {k: v for k, v in asdict(self).items() if k != "samples"}
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in kept.items()}
