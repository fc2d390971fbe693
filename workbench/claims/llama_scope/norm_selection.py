"""Selecting by decoder norm against unit-norm decoders: no difference when both are done right."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sae import SAEConfig, TopKConfig
from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab
from workbench.claims.recipe import plain


def measure(lab: Lab) -> Finding:
    """EV of free decoders selected by f·‖d‖ minus EV of unit decoders; control: half the latents per row."""
    d = lab.heldout().shape[1]
    rows = []
    for seed in lab.each_seed():
        own: dict[str, Any] = {"d_in": d, "d_sae": 1024, "k": 16, "seed": seed} | plain(1024)
        unit = lab.score(lab.train(TopKConfig(**own)))
        free = lab.score(lab.train(SAEConfig(**own, activation="norm-topk")))
        half = lab.score(lab.train(TopKConfig(**own | {"k": 8})))
        rows.append({"seed": seed, "unit": unit["ev"], "by_norm": free["ev"], "half_k": half["ev"]})
    table = pd.DataFrame(rows)
    return Finding(
        Measured.of(table.by_norm - table.unit, unit="EV"), Measured.of(table.half_k - table.unit, unit="EV"), table
    )


CLAIM = Claim(
    id="llama-scope.norm-selection",
    paper="llama-scope",
    section="3.3.1 and appendix C",
    statement=(
        "Top-K by decoder-norm-weighted activation is as good as Top-K with unit decoders (the paper reports better,"
        " and suspects a bug)."
    ),
    paper_number=">= 0.05 EV in favour of decoder-norm selection, doubted by the authors",
    experiment="Both variants at k = 16, F = 1024 on the same rows; difference in held-out EV.",
    control="Halving k, a real difference, must fall outside the margin.",
    rule=Rule("within", 0.005, "outside"),
    unit="seed of the dictionaries",
    would_change="A difference of more than 0.005 of explained variance either way.",
    measure=measure,
    needs=("demo store",),
    cost=6,
)
