"""Trained models share more than untrained ones once the token is known; raw correlation says the reverse."""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Rule
from workbench.claims.lab import Lab
from workbench.claims.universality.similarity import UNIT, difference, readings, said

TC, NULL = "token-conditional", "token-conditional null"


def measure(lab: Lab) -> Finding:
    """Token-conditional correlation of the trained models minus that of the untrained; control: of their nulls."""
    found = difference(lab, TC, f"untrained {TC}", (NULL, f"untrained {NULL}"))
    if found.untestable:
        return found
    untrained = readings(lab, "untrained")
    more = found.more | {f"untrained {k}": m for k, m in untrained.items()}
    note = f"{found.note}; untrained: {said(untrained)}"
    return Finding(found.effect, found.control, found.table, note, more=more)


CLAIM = Claim(
    id="universality.training-matters",
    paper="universality",
    section="open: dictionaries of untrained models",
    statement=(
        "Given the token, the trained models' latents are more similar across architectures than the untrained models'."
    ),
    paper_number="not reported",
    experiment="Token-conditional correlation trained minus step 0 of both, same tokens, sizes and steps, by layer.",
    control="The same difference of their nulls (tokens exchanged).",
    rule=Rule("above", 0.05, "beaten"),
    unit=UNIT,
    would_change="Untrained models as similar given the token.",
    measure=measure,
    needs=("comparison",),
    cost=1,
)
