"""The two models' latents are aligned token for token."""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Measured, positive_beyond_control, untestable
from workbench.claims.lab import Lab


def measure(lab: Lab) -> Finding:
    """Mean correlation at shift 0 minus the best of the other shifts."""
    shifts = lab.comparison().table("shifts")
    ab = shifts[shifts.direction == "ab"].set_index("shift")
    if 0 not in ab.index or len(ab) < 2:
        return untestable("shifted comparisons were not computed")
    others = ab.drop(index=0)
    best = others["mean"].idxmax()
    gap = float(ab.loc[0, "mean"] - others.loc[best, "mean"])
    effect = Measured(
        gap,
        float(ab.loc[0, "low"] - others.loc[best, "high"]),
        float(ab.loc[0, "high"] - others.loc[best, "low"]),
        int(ab.loc[0, "n"]),
    )
    worst = others["mean"].idxmin()
    control = Measured(
        float(others.loc[worst, "mean"] - others.loc[best, "mean"]), None, None, int(others.loc[worst, "n"])
    )
    return Finding(effect, control, shifts, f"best other shift {best:+d}")


CLAIM = Claim(
    id="universality.alignment",
    paper="universality",
    section="4.1",
    statement="Latents of the two architectures fire on the same token, not on a neighbour.",
    paper_number="not reported",
    experiment="Mean best correlation at shift 0 minus the best of the shifts −2, −1, +1, +2.",
    control="The worst shift held against the best of them.",
    criterion="Interval above zero and above the control.",
    measure=measure,
    holds=positive_beyond_control,
    needs=("comparison",),
    cost=1,
)
