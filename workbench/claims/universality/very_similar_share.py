"""A third of the latents have a very similar twin in the other architecture - raw; given the token, few have."""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab
from workbench.claims.universality.similarity import UNIT, missing, readings, said, share_by_layer

TC = "token-conditional"


def measure(lab: Lab) -> Finding:
    """Share of latents with r >= 0.7 given the token; control: the same for the untrained models."""
    if (why := missing(lab, (TC, f"untrained {TC}"))) is not None:
        return why
    table = share_by_layer(lab, (TC, f"untrained {TC}"), 0.7)
    read, untrained = readings(lab, column="share"), readings(lab, "untrained", column="share")
    return Finding(
        Measured.of(table[TC].to_numpy(), unit="share"),
        Measured.of(table[f"untrained {TC}"].to_numpy(), unit="share"),
        table.reset_index(),
        f"shares of r >= 0.7: {said(read)}; untrained: {said(untrained)} - raw, untrained models pass as well",
        more=read | {f"untrained {k}": m for k, m in untrained.items()},
    )


CLAIM = Claim(
    id="universality.very-similar-share",
    paper="universality",
    section="4.2",
    statement=(
        "Given the token, more than 30 % of latents have a very similar latent (r >= 0.7) in the other architecture."
    ),
    paper_number="> 30 % of Pythia-160M's latents in mamba-130m, raw",
    experiment="Share of latents with token-conditional correlation of at least 0.7, any layer of the other model.",
    control="The same share for the untrained models.",
    rule=Rule("above", 0.3, "beaten"),
    unit=UNIT,
    would_change="A share above 0.3 once the token is taken out.",
    measure=measure,
    needs=("comparison",),
    cost=1,
)
