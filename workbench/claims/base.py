"""What a claim is, what an experiment returns, and how the two become a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.claims.measured import Measured
from workbench.claims.rules import (
    BY_CONSTRUCTION,
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTABLE,
    SUPPORTED,
    VERDICTS,
    Judgement,
    Rule,
    judge,
)

if TYPE_CHECKING:
    from workbench.claims.lab import Lab

__all__ = [
    "BY_CONSTRUCTION",
    "CONTRADICTED",
    "INCONCLUSIVE",
    "NOT_TESTABLE",
    "SUPPORTED",
    "VERDICTS",
    "Claim",
    "Finding",
    "Measured",
    "Rule",
    "untestable",
    "verdict",
]


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
    open: str = ""  # why this measurement cannot decide, whatever its interval
    more: dict[str, Any] = field(default_factory=dict)  # numbers that belong beside the effect, by name

    def as_dict(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        return {
            "effect": self.effect.as_dict(),
            "control": None if self.control is None else self.control.as_dict(),
            "note": self.note,
            "untestable": self.untestable,
            "more": {k: v.as_dict() if isinstance(v, Measured) else v for k, v in self.more.items()},
        }


def untestable(why: str, *, n: int = 0, control: Measured | None = None, table: pd.DataFrame | None = None) -> Finding:
    """A finding that there is nothing to find here, and why. ``n``: units that were looked at to see that."""
    return Finding(Measured(float("nan"), None, None, n), control, table, untestable=why)


@dataclass(frozen=True)
class Claim:
    """One finding of a paper. ``rule`` is the criterion, fixed before any run: a pure function of the numbers.

    ``unit`` says what one of the n observations is (``seed of the dictionary``, ``prompt``). ``construction`` says why
    the statement could not have come out otherwise: such a claim is measured and listed, and no finding. ``unsettled``
    says why no measurement here decides it. ``would_change`` is what would overturn the verdict.

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
    rule: Rule
    unit: str
    measure: Callable[[Lab], Finding] = field(repr=False)
    would_change: str = ""
    construction: str = ""
    unsettled: str = ""
    needs: tuple[str, ...] = ()
    cost: float = 2.0

    @property
    def trained_anew(self) -> bool:
        """Whether it needs language models that are trained for it (``--retrain``)."""
        return any(n.startswith("variant ") for n in self.needs)


def judgement(claim: Claim, finding: Finding) -> Judgement:
    """The verdict on a claim from what its experiment saw."""
    nan = float("nan")
    if finding.untestable:
        return Judgement(NOT_TESTABLE, nan, nan, finding.untestable)
    if claim.construction:
        return Judgement(BY_CONSTRUCTION, nan, nan, claim.construction)
    found = judge(claim.rule, finding.effect, finding.control)
    if claim.unsettled or finding.open:
        return Judgement(INCONCLUSIVE, found.p, found.p_exact, claim.unsettled or finding.open)
    return found


def verdict(claim: Claim, finding: Finding) -> str:
    """One of :data:`~workbench.claims.rules.VERDICTS`."""
    return judgement(claim, finding).verdict
