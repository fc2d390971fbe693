"""random < neurons < across architectures < model seed <= SAE seed, one claim per step."""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Measured, positive_beyond_control, untestable
from workbench.claims.lab import Lab

STEPS = {
    "neurons-above-chance": ("random", "neurons", "Neurons of the two models correlate above chance."),
    "latents-above-neurons": ("neurons", "cross", "Latents match across architectures far better than neurons do."),
    "architecture-below-seed": (
        "cross",
        "model seed",
        "A second seed of the same architecture is more similar than the other architecture.",
    ),
    "model-seed-below-sae-seed": (
        "model seed",
        "sae seed",
        "A second seed of the dictionary is at least as similar as a second seed of the model.",
    ),
}


def _measure(lower: str, higher: str):  # type: ignore[no-untyped-def]
    def measure(lab: Lab) -> Finding:
        """Difference of mean MPPC between the two series; the control is the lower series' own chance level."""
        records = lab.comparison()
        order = records.table("order")
        rows = order[(order.direction == "ab") & (order.lower == lower) & (order.higher == higher)]
        if not len(rows):
            missing = records.manifest.metadata.get("missing", {})
            return untestable(str(missing.get(higher) or missing.get(lower) or f"{lower} or {higher} was not computed"))
        r = rows.iloc[0]
        summary = records.table("summary")
        n = int(summary[(summary.direction == "ab") & (summary.series == higher)]["n"].iloc[0])
        effect = Measured(float(r.difference), float(r.low), float(r.high), n, "mean correlation")
        return Finding(effect, Measured(0.0, None, None, n, "mean correlation"), order)

    return measure


CLAIMS = [
    Claim(
        id=f"universality.{name}",
        paper="universality",
        section="4.1-4.3",
        statement=statement,
        paper_number="mean MPPC 0.74 across architectures; neurons almost none; slightly below the seed skylines",
        experiment=f"Mean max pairwise Pearson correlation of '{higher}' minus '{lower}', on the same tokens.",
        control="No difference (permuted tokens give the chance level inside the series 'random').",
        criterion="95 % bootstrap interval over latents above zero.",
        measure=_measure(lower, higher),
        holds=positive_beyond_control,
        needs=("comparison",),
        cost=1,
    )
    for name, (lower, higher, statement) in STEPS.items()
]
