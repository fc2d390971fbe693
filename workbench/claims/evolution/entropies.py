"""The loss falls to the entropy of single tokens before it falls to that of pairs."""

from __future__ import annotations

import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab


def crossings(phases: pd.DataFrame) -> tuple[int, int]:
    """First snapshots whose loss lies below what a unigram and a bigram table lose on the same held-out tokens; -1:
    none does.
    """
    below = [(phases["loss"] < phases[column]).to_numpy() for column in ("ce_unigram", "ce_bigram")]
    first, second = (int(b.argmax()) if b.any() else -1 for b in below)
    return first, second


def measure(lab: Lab) -> Finding:
    """Snapshots between the two crossings; control: by how much the untrained model loses more than
    the unigram table.
    """
    phases = lab.evolution(0).phases
    first, second = crossings(phases)
    steps = phases["step"].tolist()
    apart = float(second - first) if min(first, second) >= 0 else float("nan")
    said = [
        f"the {what} entropy " + (f"at step {steps[i]:,}" if i >= 0 else "never")
        for what, i in (("unigram", first), ("bigram", second))
    ]
    control = Measured(
        float(phases["loss"].iloc[0] - phases["ce_unigram"].iloc[0]), None, None, len(phases), "nats above, untrained"
    )
    columns = ["source", "step", "loss", "ce_unigram", "ce_bigram", "h1", "h2"]
    return Finding(
        Measured(apart, None, None, len(phases), "snapshots"),
        control,
        phases[columns],
        f"the loss is below {' and '.join(said)}",
    )


CLAIM = Claim(
    id="evolution.entropies-crossed-in-order",
    paper="evolution",
    section="5.1",
    statement="The loss falls below the unigram entropy first and below the bigram entropy later.",
    paper_number="loss near the entropies, figure only",
    experiment=(
        "Loss of every snapshot on held-out text beside what smoothed unigram and bigram tables lose on the same"
        " tokens; snapshots between the crossings."
    ),
    control="The untrained model must lose more than the unigram table: nothing is crossed at the start.",
    rule=Rule("above", 0.0, "beaten"),
    unit="snapshot; one training run of the model",
    construction=(
        "The bigram entropy lies below the unigram entropy, and the loss falls: it must cross them in this order."
    ),
    measure=measure,
    needs=("evolution",),
)
