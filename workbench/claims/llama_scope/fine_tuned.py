"""Dictionaries of a base model work on its fine-tuned variant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, untestable
from workbench.claims.lab import Lab

if TYPE_CHECKING:
    from workbench.analysis.evaluation.evaluate import Evaluation

BASE, TUNED, OTHER = "mini-pythia", "mini-pythia-prose", "mini-pythia-s1"
LAYERS, JUDGED = (0, 1, 2), 1


def lost(base: Evaluation, other: Evaluation, *, seed: int = 0) -> tuple[float, float, float]:
    """EV on the first minus EV on the second, with its 95 % interval: the same sequences in both,
    resampled together.
    """
    sums = [e.sums.groupby("sequence")[["error", "centred"]].sum() for e in (base, other)]
    draws = np.random.default_rng(seed).multinomial(len(sums[0]), np.full(len(sums[0]), 1 / len(sums[0])), size=2000)
    drawn = [draws @ s["error"].to_numpy() / (draws @ s["centred"].to_numpy()) for s in sums]
    low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])
    whole = [float(s["error"].sum() / s["centred"].sum()) for s in sums]
    return whole[1] - whole[0], float(low), float(high)


def measure(lab: Lab) -> Finding:
    """EV lost on the fine-tuned model, layer by layer (the middle one is judged); control: on a second initialisation,
    trained alike.
    """
    from workbench.analysis.evaluation.evaluate import evaluate_in_model
    from workbench.analysis.evaluation.run import EvaluationRequest, heldout_tokens
    from workbench.dictionaries.reference import find_dictionary
    from workbench.models import load_model
    from workbench.models.load import bundled

    if missing := [m for m in (TUNED, OTHER) if m not in bundled()]:
        return untestable(f"{', '.join(missing)} is not bundled")
    lab.demo()
    models = {name: load_model(name) for name in (BASE, TUNED, OTHER)}
    rows, judged = [], {}
    for layer in LAYERS:
        planned = find_dictionary(lab.workspace, f"{BASE}.L{layer}R-8x")
        tokens, _ = heldout_tokens(
            lab.workspace, planned, EvaluationRequest(sequences=32 if lab.quick else 96), models[BASE]
        )
        found = {name: evaluate_in_model(model, planned.load(), planned.hook, tokens) for name, model in models.items()}
        for name in (TUNED, OTHER):
            value, low, high = lost(found[BASE], found[name])
            about = {"ev": found[name].estimates["ev"].value, "delta_ce": found[name].estimates["delta_ce"].value}
            rows.append(
                {"layer": layer, "model": name, "lost": value, "low": low, "high": high, "n": len(tokens)} | about
            )
            if layer == JUDGED:
                judged[name] = Measured(value, low, high, len(tokens), "EV lost")
    table = pd.DataFrame(rows)
    tuned = table[table.model == TUNED]
    layers = ", ".join(f"layer {r.layer}: {r.lost:.3f}" for r in tuned.itertuples())
    note = (
        f"EV lost by layer: {layers}; the last layer is {'' if tuned.lost.idxmax() == tuned.index[-1] else 'not '}the"
        " worst"
    )
    return Finding(judged[TUNED], judged[OTHER], table, note)


CLAIM = Claim(
    id="llama-scope.fine-tuned",
    paper="llama-scope",
    section="4.5, figure 6",
    statement="Dictionaries trained on a base model transfer to its fine-tuned variant without notable degradation.",
    paper_number="no notable degradation except at the last layer",
    experiment=(
        "EV of a base dictionary of the middle layer on the base model minus on the model continued on prose alone,"
        " same held-out text."
    ),
    control=(
        "The same on a second initialisation of the model, trained on the same text: as well-scaled activations, other"
        " directions."
    ),
    criterion="At most 0.05 EV lost, the control more than that.",
    measure=measure,
    holds=lambda f: f.effect.value <= 0.05 and f.control is not None and f.control.value > 0.05,
    needs=("demo dictionaries",),
    cost=15,
)
