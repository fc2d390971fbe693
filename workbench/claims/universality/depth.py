"""Matched latents sit at similar relative depth."""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Measured, positive_beyond_control
from workbench.claims.lab import Lab


def measure(lab: Lab) -> Finding:
    """Rank correlation of relative depth over matched pairs, with its bootstrap interval."""
    numbers = lab.comparison().manifest.numbers["ab"]["depth_rank_correlation"]
    return Finding(
        Measured.from_dict(numbers, "rank correlation"),
        Measured(0.0, None, None, int(numbers["n"] or 0)),
        lab.comparison().table("depth"),
    )


CLAIM = Claim(
    id="universality.depth",
    paper="universality",
    section="4.4",
    statement="Similar latents sit at similar relative depth in the two architectures.",
    paper_number="near-diagonal heat map",
    experiment="Spearman correlation of relative depth over pairs with r of at least 0.5 and above chance.",
    control="No association.",
    criterion="95 % interval above zero.",
    measure=measure,
    holds=positive_beyond_control,
    needs=("comparison",),
    cost=1,
)
