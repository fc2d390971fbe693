"""A few attention heads carry induction in the Transformer, and they are not there before training."""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab


def measure(lab: Lab) -> Finding:
    """Share of the direct effect on the answer at one head and position; control: the same in the untrained model."""
    final, start = lab.circuits("mini-pythia"), lab.circuits("mini-pythia", "step0")
    heads, previous = final["induction_heads"], final["previous_token_heads"]
    layers = [h[0] for h in heads["attention"]]
    before = all(any(p[0] < layer for p in previous["attention"]) for layer in layers) if layers else False
    note = (
        f"{heads['sentence']} {previous['sentence']} accuracy {final['accuracy']['value']:.2f}, untrained"
        f" {start['accuracy']['value']:.2f}"
    )
    note += "" if before else " No previous-token head lies in an earlier layer."
    effect = Measured.from_dict(final["read_peak"]["share"], "share of the direct effect")
    control = Measured.from_dict(start["read_peak"]["share"], "share of the direct effect")
    why = "" if before else "no previous-token head lies in an earlier layer"
    why = why or ("" if heads["agree"] else "attention and causal criteria name different heads")
    return Finding(effect, control, note=note, open=why)


CLAIM = Claim(
    id="universality.transformer-induction",
    paper="universality",
    section="5.1",
    statement=(
        "In the Transformer one or few induction heads, fed by previous-token heads of earlier layers, carry in-context"
        " copying."
    ),
    paper_number="head 5.0 lowers the answer's logit by 2.35 of 9.31",
    experiment=(
        "Path patching head to logit on single-match prompts; share of the summed direct effect at the strongest head"
        " and position."
    ),
    control="The same share at the strongest head and position of the untrained model.",
    rule=Rule("above", 0.3, "beaten"),
    unit="prompt; one trained Transformer",
    would_change="A head and position that holds less than 0.3, or two criteria that disagree.",
    measure=measure,
    needs=("circuits mini-pythia", "circuits mini-pythia@step0"),
    cost=1,
)
