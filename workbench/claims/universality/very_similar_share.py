"""A third of the latents have a very similar twin in the other architecture."""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Measured, above
from workbench.claims.lab import Lab


def measure(lab: Lab) -> Finding:
    """Share of the Transformer's latents with r >= 0.7 in the Mamba; control: the same among permuted tokens."""
    summary = lab.comparison().table("summary")
    rows = summary[summary.direction == "ab"].set_index("series")
    p, n = float(rows.loc["cross", "share_70"]), int(rows.loc["cross", "n"])
    half = 1.96 * (p * (1 - p) / max(1, n)) ** 0.5
    chance = "random partner" if "random partner" in rows.index else "shuffle"
    control = Measured(float(rows.loc[chance, "share_70"]), None, None, int(rows.loc[chance, "n"]), "share")
    return Finding(Measured(p, p - half, p + half, n, "share"), control, summary, f"control: {chance}")


CLAIM = Claim(
    id="universality.very-similar-share",
    paper="universality",
    section="4.2",
    statement="More than 30 % of latents have a very similar latent (r >= 0.7) in the other architecture.",
    paper_number="> 30 % of Pythia-160M's latents in mamba-130m",
    experiment="Share of latents with best correlation of at least 0.7, any layer of the other model.",
    control="The same share for random encoders with the same firing rates as partners.",
    criterion="95 % interval above 0.3, the control not.",
    measure=measure,
    holds=above(0.3),
    needs=("comparison",),
    cost=1,
)
