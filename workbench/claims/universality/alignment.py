"""The two models' latents are aligned token for token."""

from __future__ import annotations

import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab


def measure(lab: Lab) -> Finding:
    """Mean correlation at shift 0 minus the best of the other shifts; control: the next shift on the other side minus
    the same best, which must not be positive.
    """
    shifts = lab.comparison().table("shifts")
    gaps, others, best = [], [], []
    for _, part in shifts.groupby("direction"):
        means = part.set_index("shift")["mean"]
        if 0 not in means.index or len(means) < 3:
            return untestable("shifted comparisons were not computed")
        rest = means.drop(0).sort_values(ascending=False)
        gaps.append(float(means[0] - rest.iloc[0]))
        others.append(float(rest.iloc[1] - rest.iloc[0]))
        best.append(f"{rest.index[0]:+d}")
    table = pd.DataFrame({"gap": gaps, "other": others, "best": best})
    note = f"best other shift {', '.join(best)} by direction"
    return Finding(Measured.of(gaps, unit="correlation"), Measured.of(others, unit="correlation"), table, note)


CLAIM = Claim(
    id="universality.alignment",
    paper="universality",
    section="4.1",
    statement="Latents of the two architectures fire on the same token, not on a neighbour.",
    paper_number="not reported",
    experiment="Mean best correlation at shift 0 minus the best of the shifts −2, −1, +1, +2.",
    control="The second best of the other shifts minus the best: what a shift with nothing special gives.",
    rule=Rule("above", 0.05, "beaten"),
    unit="direction; one pair of trained models",
    would_change="A neighbouring token that fits as well.",
    measure=measure,
    needs=("comparison",),
    cost=1,
)
