"""Similarity is above chance at every firing frequency, although a maximum over many candidates inflates it for rare
latents.
"""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Measured, untestable
from workbench.claims.lab import Lab

MIN_LATENTS = 50  # frequency bins with fewer are not judged


def measure(lab: Lab) -> Finding:
    """Smallest distance, over frequency bins, of the median best correlation from the 99 % of chance; control: chance's
    own median.
    """
    nulls = lab.comparison().table("nulls")
    bins = nulls[(nulls.direction == "ab") & (nulls.n >= MIN_LATENTS)]
    if not len(bins):
        return untestable(f"no frequency bin holds {MIN_LATENTS} latents")
    above, chance = bins.cross_q50 - bins.q99, bins.q50 - bins.q99
    worst = bins.iloc[int(above.to_numpy().argmin())]
    note = (
        f"{len(bins)} bins; least above chance: latents that fire {worst.fired_from:,.0f}–{worst.fired_to:,.0f} times;"
        f" 99 % of chance {bins.q99.min():.2f}–{bins.q99.max():.2f}"
    )
    n = int(bins.n.sum())
    return Finding(
        Measured(float(above.min()), None, None, n, "correlation"),
        Measured(float(chance.max()), None, None, n),
        nulls,
        note,
    )


CLAIM = Claim(
    id="universality.chance-by-frequency",
    paper="universality",
    section="open: a null per frequency",
    statement="Latents of every firing frequency are more similar across architectures than chance allows.",
    paper_number="no chance level reported",
    experiment=(
        "Median best correlation minus the 99 % quantile for partners shifted by at least a document, in the worst"
        " frequency bin."
    ),
    control="The same for the shifted partners' own median.",
    criterion="Above zero in every bin of at least 50 latents, the control below.",
    measure=measure,
    holds=lambda f: f.effect.value > 0 and f.control is not None and f.control.value < 0,
    needs=("comparison",),
    cost=1,
)
