"""How numbers become a verdict: a region in which the statement is true, and what the control must show.

An *analysis* here is a pure function of the numbers (:func:`judge`), and so is its opposite (:func:`scrambled`), which
draws the numbers again as they would come if the effect were not there. Both are tried over the whole registry: every
claim is supported by an effect that is injected and not by one that is destroyed, and a simulated null run finds no
more than it may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from workbench.claims.measured import Measured

VERDICTS = SUPPORTED, CONTRADICTED, INCONCLUSIVE, BY_CONSTRUCTION, NOT_TESTABLE = (
    "supported",
    "contradicted",
    "inconclusive",
    "by construction",
    "not testable here",
)
MEANS = {
    SUPPORTED: "the interval lies where the statement is true, and the control fails as it must",
    CONTRADICTED: "the interval lies where the statement is false",
    INCONCLUSIVE: "the interval, or the control, leaves it open",
    BY_CONSTRUCTION: "it could not have come out otherwise; listed, never counted",
    NOT_TESTABLE: "these models cannot carry it",
}


@dataclass(frozen=True)
class Rule:
    """The region of the effect in which the statement is true, and how the control is used.

    Attributes:
        kind: ``above`` a level, ``below`` it, at most it, or within +- it.
        level: the bound, in the unit of the effect: a margin that means something, not a bare zero, where there is one.
        control: ``beaten``: the effect must lie beyond the control on the claimed side (paired where both have a number
            per unit); ``outside``: the control is a real difference and must lie outside the region, or the test has
            no power.
    """

    kind: Literal["above", "below", "at most", "within"]
    level: float
    control: Literal["beaten", "outside"]

    @property
    def region(self) -> tuple[float, float]:
        """(low, high) of the effect for which the statement is true."""
        return {
            "above": (self.level, np.inf),
            "below": (-np.inf, self.level),
            "at most": (-np.inf, self.level),
            "within": (-self.level, self.level),
        }[self.kind]

    def words(self, unit: str) -> str:
        """The criterion in a sentence."""
        bound = f"{self.level:g} {unit}".strip()
        where = {"above": f"above {bound}", "below": f"below {bound}", "at most": f"at or below {bound}"}
        said = where.get(self.kind, f"within ±{bound}")
        control = (
            f"{'above' if self.kind == 'above' else 'below'} the control's" if self.control == "beaten" else
            "the control's outside"
        )  # fmt: skip
        return f"The effect's 95 % interval lies {said}, {control}."


@dataclass(frozen=True)
class Judgement:
    """A verdict with its evidence: one-sided p of the bound (and the control), and by exact sign flips of the units."""

    verdict: str
    p: float
    p_exact: float
    why: str = ""


def beyond_control(rule: Rule, effect: Measured, control: Measured) -> Measured:
    """Effect minus control, positive on the claimed side."""
    return effect.minus(control) if rule.kind == "above" else control.minus(effect)


def judge(rule: Rule, effect: Measured, control: Measured | None) -> Judgement:
    """The verdict that follows from the numbers: supported, contradicted or inconclusive.

    Nothing is supported without a measured control, and a number without an interval supports nothing.
    """
    nan = float("nan")
    if not effect.known:
        return Judgement(INCONCLUSIVE, nan, nan, "the effect could not be computed")
    if control is None or not control.known:
        return Judgement(INCONCLUSIVE, nan, nan, "the control was not measured")
    if effect.low is None or effect.high is None:
        return Judgement(INCONCLUSIVE, nan, nan, "one unit has no interval")
    low, high = rule.region
    inside = (
        low < effect.low and effect.high <= high if rule.kind == "above" else low <= effect.low and effect.high < high
    )
    if rule.kind == "at most":
        inside = effect.high <= high
    outside = effect.high <= low or effect.low >= high
    bounds = [effect.p_above(low) if np.isfinite(low) else 0.0, effect.p_below(high) if np.isfinite(high) else 0.0]
    exact = [
        effect.exact_p(low) if np.isfinite(low) else 0.0,
        effect.times(-1).exact_p(-high) if np.isfinite(high) else 0.0,
    ]
    if rule.control == "beaten":
        apart = beyond_control(rule, effect, control)
        bounds.append(apart.p_above(0))
        exact.append(apart.exact_p(0))
        fails = apart.low is not None and apart.low > 0
        outside = outside or (apart.high is not None and apart.high < 0)
        why = "" if fails else "not beyond the control"
    else:
        ends = (
            control.value if control.low is None else control.low,
            control.value if control.high is None else control.high,
        )
        fails = ends[1] <= low or ends[0] >= high
        why = "" if fails else "the control lies inside the region: the test has no power"
    p = float(np.max(bounds))
    verdict = CONTRADICTED if outside else SUPPORTED if inside and fails else INCONCLUSIVE
    return Judgement(verdict, p, float(np.max(exact)), why if verdict == INCONCLUSIVE else "")


def scrambled(
    rule: Rule, effect: Measured, control: Measured | None, rng: np.random.Generator
) -> tuple[Measured, Measured | None]:
    """The numbers of a run in which the effect is not there, as near to it as may be: a draw at the region's border.

    With a control to be beaten, effect and control are two draws of one quantity (at the border or at the control,
    whichever is further on the claimed side).
    """
    low, high = rule.region
    border = low if np.isfinite(low) else high
    if rule.control == "beaten" and control is not None and control.known:
        at = max(border, control.value) if rule.kind == "above" else min(border, control.value)
        return effect.moved_to(at, rng), control.moved_to(at, rng)
    return effect.moved_to(border, rng), control


def injected(rule: Rule, effect: Measured, control: Measured | None) -> tuple[Measured, Measured]:
    """Numbers with an effect that cannot be missed, in the form the claim has them: as many units, a control that
    behaves as it must.
    """
    low, high = rule.region
    size = 1.0 if rule.level == 0 else abs(rule.level)
    inside = {"above": low + size, "below": high - size, "at most": high - size / 2, "within": 0.0}[rule.kind]
    jitter = 0.01 * size * np.linspace(-1, 1, max(2, min(effect.n, 8)))
    far = {"above": low - size, "below": high + size}.get(rule.kind, 3 * size)
    return Measured.of(inside + jitter, unit=effect.unit), Measured.of(far + jitter[::-1] * 0.9, unit=effect.unit)


def holm(p: dict[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment of the p values of one family; NaN (no evidence) counts as 1."""
    names = sorted(p, key=lambda k: 1.0 if np.isnan(p[k]) else p[k])
    out, running = {}, 0.0
    for i, name in enumerate(names):
        own = 1.0 if np.isnan(p[name]) else p[name]
        running = max(running, min(1.0, (len(names) - i) * own))
        out[name] = running
    return out
