"""What a claim is, what an experiment returns, and how the two become a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from workbench.claims.lab import Lab

VERDICTS = FOUND, NOT_FOUND, NOT_TESTABLE = "found", "not found", "not testable here"


@dataclass(frozen=True)
class Measured:
    """An estimate with its 95 % interval (None where it has none) and the number of observations behind it."""

    value: float
    low: float | None
    high: float | None
    n: int
    unit: str = ""

    @classmethod
    def of(cls, samples: Sequence[float] | np.ndarray, *, unit: str = "", seed: int = 0, draws: int = 2000) -> Measured:
        """Mean of independent observations with a percentile bootstrap interval; no interval below three of them."""
        x = np.asarray(samples, np.float64)
        x = x[np.isfinite(x)]
        if len(x) == 0:
            return cls(float("nan"), None, None, 0, unit)
        if len(x) < 3:
            return cls(float(x.mean()), None, None, len(x), unit)
        means = x[np.random.default_rng(seed).integers(0, len(x), (draws, len(x)))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        return cls(float(x.mean()), float(low), float(high), len(x), unit)

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
    def floor(self) -> float:
        """Lower end of the interval, or the value itself where there is none."""
        return self.value if self.low is None else self.low

    @property
    def ceiling(self) -> float:
        """Upper end of the interval, or the value itself where there is none."""
        return self.value if self.high is None else self.high


@dataclass(frozen=True)
class Finding:
    """What an experiment saw: the effect, the same quantity under the control, and a table for whoever
    wants to look.
    """

    effect: Measured
    control: Measured | None = None
    table: pd.DataFrame | None = None
    note: str = ""
    untestable: str = ""  # why not, if the models or the workspace cannot carry the claim

    def as_dict(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        return {
            "effect": _plain(self.effect),
            "control": None if self.control is None else _plain(self.control),
            "note": self.note,
            "untestable": self.untestable,
        }


def _plain(m: Measured) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(m).items()}


def untestable(why: str) -> Finding:
    """A finding that there is nothing to find here, and why."""
    return Finding(Measured(float("nan"), None, None, 0), untestable=why)


@dataclass(frozen=True)
class Claim:
    """One finding of a paper. ``holds`` is the criterion: a pure function of the finding, fixed before any run.

    ``needs`` names the shared experiments that ``measure`` asks the lab for (see :data:`workbench.claims.lab.SHARED`),
    so that they can be made beforehand, side by side; ``cost`` is what its own part takes, in seconds of a quick run
    with three seeds on one core.
    """

    id: str
    paper: str
    section: str
    statement: str
    paper_number: str
    experiment: str
    control: str
    criterion: str
    measure: Callable[[Lab], Finding] = field(repr=False)
    holds: Callable[[Finding], bool] = field(repr=False)
    needs: tuple[str, ...] = ()
    cost: float = 2.0


def verdict(claim: Claim, finding: Finding) -> str:
    """``found``, ``not found`` or ``not testable here``; an effect that could not be computed is never found."""
    if finding.untestable:
        return NOT_TESTABLE
    if not np.isfinite(finding.effect.value) or finding.effect.n == 0:
        return NOT_FOUND
    return FOUND if claim.holds(finding) else NOT_FOUND


# --- criteria
# ----------------------------------------------------------------------------------------------------------


def positive_beyond_control(finding: Finding) -> bool:
    """The effect's interval lies above zero and above the control's."""
    e, c = finding.effect, finding.control
    return e.floor > 0 and (c is None or e.floor > c.ceiling)


def negative_beyond_control(finding: Finding) -> bool:
    """The effect's interval lies below zero and below the control's."""
    e, c = finding.effect, finding.control
    return e.ceiling < 0 and (c is None or e.ceiling < c.floor)


def within(margin: float) -> Callable[[Finding], bool]:
    """The effect's interval lies inside ±margin, and the control (a real difference) outside it."""

    def holds(finding: Finding) -> bool:
        e, c = finding.effect, finding.control
        return max(abs(e.floor), abs(e.ceiling)) <= margin and (c is None or abs(c.value) > margin)

    return holds


def above(level: float) -> Callable[[Finding], bool]:
    """The effect's interval lies above ``level``, and the control does not reach it."""

    def holds(finding: Finding) -> bool:
        return finding.effect.floor > level and (finding.control is None or finding.control.value <= level)

    return holds
