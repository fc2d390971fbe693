"""Dictionaries of a base model work on its fine-tuned variant."""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Measured, untestable
from workbench.claims.lab import Lab

DICTIONARY, TUNED = "mini-pythia.L1R-8x", "mini-pythia-prose"


def measure(lab: Lab) -> Finding:
    """Share of the loss recovered on the fine-tuned model; control: on the untrained model."""
    from workbench.analysis.evaluate_run import Request, evaluate_dictionary
    from workbench.analysis.subject import find_subject
    from workbench.models.load import bundled

    if TUNED not in bundled():
        return untestable(f"the fine-tuned model {TUNED} is not bundled")
    lab.store()
    subject, n = find_subject(lab.workspace, DICTIONARY), 32 if lab.quick else 96
    base = evaluate_dictionary(lab.workspace, subject, Request(sequences=n)).manifest.numbers
    tuned = evaluate_dictionary(lab.workspace, subject, Request(sequences=n, model=TUNED)).manifest.numbers
    other = evaluate_dictionary(lab.workspace, subject, Request(sequences=n, revision="step16")).manifest.numbers
    key = next(k for k in base if k == "ev" or "explained" in k)
    note = f"EV {base[key]['value']:.3f} on the base model, {tuned[key]['value']:.3f} fine-tuned, {other[key]['value']:.3f} at step 16"
    drop = Measured(base[key]["value"] - tuned[key]["value"], None, None, n, "EV lost")
    return Finding(drop, Measured(base[key]["value"] - other[key]["value"], None, None, n, "EV lost"), note=note)


CLAIM = Claim(
    id="llama-scope.fine-tuned",
    paper="llama-scope",
    section="4.5, figure 6",
    statement="Dictionaries trained on a base model transfer to its fine-tuned variant without notable degradation.",
    paper_number="no notable degradation except at the last layer",
    experiment="EV of a base dictionary on the base model minus on the model continued on prose alone.",
    control="The same on a model that shares only the initialisation (step 16).",
    criterion="At most 0.05 EV lost, the control more than that.",
    measure=measure,
    holds=lambda f: f.effect.value <= 0.05 and f.control is not None and f.control.value > 0.05,
)
