"""What the two architectures share is learnt: dictionaries of untrained models agree less."""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Measured, positive_beyond_control, untestable
from workbench.claims.lab import Lab


def measure(lab: Lab) -> Finding:
    """Mean best correlation of the trained models minus that of the untrained ones, from their summaries' intervals."""
    records = lab.comparison()
    summary = records.table("summary")
    rows = summary[summary.direction == "ab"].set_index("series")
    if "untrained" not in rows.index:
        return untestable(str(records.metadata.get("missing", {}).get("untrained", "not computed")))
    trained, untrained = rows.loc["cross"], rows.loc["untrained"]
    effect = Measured(
        float(trained["mean"] - untrained["mean"]),
        float(trained["low"] - untrained["high"]),
        float(trained["high"] - untrained["low"]),
        int(trained["n"]),
        "mean correlation",
    )
    note = (
        f"trained {trained['mean']:.2f}, untrained {untrained['mean']:.2f}: an untrained model's residual is the token"
        " embedding and little else, so its dictionaries are token detectors that agree"
    )
    return Finding(effect, Measured(0.0, None, None, int(untrained["n"])), summary, note)


CLAIM = Claim(
    id="universality.training-matters",
    paper="universality",
    section="open: dictionaries of untrained models",
    statement="Latents of the trained models are more similar across architectures than those of the untrained models.",
    paper_number="not reported",
    experiment=(
        "Mean best correlation on the trained models minus the same on step 0 of both, same tokens, sizes and steps."
    ),
    control="No difference.",
    criterion="Conservative 95 % interval (difference of both intervals' ends) above zero.",
    measure=measure,
    holds=positive_beyond_control,
    needs=("comparison",),
    cost=1,
)
