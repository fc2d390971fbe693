"""Matched latents sit at similar relative depth."""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab


def measure(lab: Lab) -> Finding:
    """Rank correlation of relative depth over matched pairs; control: the same for the untrained models."""
    numbers = lab.comparison().manifest.numbers
    if "depth_untrained" not in numbers["ab"]:
        return untestable("the comparison has no untrained models")
    ways = {d: Measured.from_dict(numbers[d]["depth_rank_correlation"], "rank correlation") for d in ("ab", "ba")}
    controls = {d: Measured.from_dict(numbers[d]["depth_untrained"], "rank correlation") for d in ("ab", "ba")}
    worst = min(ways, key=lambda d: ways[d].value)
    note = "; ".join(f"{d}: {m.value:.3f}, untrained {controls[d].value:.3f}" for d, m in ways.items())
    return Finding(ways[worst], controls[worst], lab.comparison().table("depth"), note)


CLAIM = Claim(
    id="universality.depth",
    paper="universality",
    section="4.4",
    statement="Similar latents sit at similar relative depth in the two architectures.",
    paper_number="near-diagonal heat map",
    experiment=(
        "Spearman correlation of relative depth over pairs with r of at least 0.5, in the direction where it is less."
    ),
    control="The same for the untrained models' dictionaries.",
    rule=Rule("above", 0.1, "beaten"),
    unit="matched latent of one pair of trained models",
    would_change="Untrained models whose matches lie as near the diagonal.",
    measure=measure,
    needs=("comparison",),
    cost=1,
)
