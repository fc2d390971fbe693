"""Wider dictionaries explain more at the same sparsity."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from sae import TopKConfig
from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab
from workbench.claims.recipe import plain

WIDTHS = (1024, 4096)  # 8x and 32x, as in the paper
STEPS = {False: 1953, True: 450}  # of 1,024 rows, by quick: two million, near the plateau of both; 460,000, short of it


def _table(lab: Lab) -> pd.DataFrame:
    """One row per width and seed: ev, l0, added loss, median firing frequency (log10) of the latents that fired."""

    def make() -> pd.DataFrame:
        d, rows = lab.heldout().shape[1], []
        for f in WIDTHS:
            for s in lab.each_seed():
                made = lab.train(TopKConfig(d_in=d, d_sae=f, k=16, seed=s, **plain(f)), steps=STEPS[lab.quick])
                fired = torch.stack([(made.encode(x) > 0).sum(0) for x in lab.heldout().split(2048)]).sum(0)
                density = fired / len(lab.heldout())
                frequency = float(density[density > 0].log10().median())
                rows.append(
                    {"width": f, "seed": s, "loss": lab.added_loss(made), "frequency": frequency} | lab.score(made)
                )
        return pd.DataFrame(rows)

    table: pd.DataFrame = lab.once("widths", make)
    return table


def _measure(column: str, unit: str, sign: int) -> Callable[[Lab], Finding]:
    def measure(lab: Lab) -> Finding:
        """What 32x gains over 8x, per seed; control: how far seeds of one width lie apart."""
        table = _table(lab)
        by = sign * table.pivot(index="seed", columns="width", values=column)
        gains = (by[WIDTHS[1]] - by[WIDTHS[0]]).to_numpy()
        apart = [float(np.abs(v - np.delete(by[WIDTHS[0]].to_numpy(), i)).mean()) for i, v in enumerate(by[WIDTHS[0]])]
        note = ", ".join(f"{w}: {v:.3f}" for w, v in table.groupby("width")[column].mean().items())
        note = f"{column} by width {note}; {STEPS[lab.quick]:,} steps of 1,024 rows{', short of a plateau' * lab.quick}"
        control = Measured.of(apart, unit=unit) if lab.seeds > 1 else None
        return Finding(Measured.of(gains, unit=unit), control, table, note)

    return measure


_RARER = "The mean firing frequency is k / F whatever the data: four times the width means a quarter of it."
# id -> (statement, the paper's number, section, experiment, column, unit, sign, level, why it holds by construction)
ROWS: dict[str, tuple[str, str, str, str, str, str, int, float, str]] = {
    "wider-better": (
        "At the same L0, a dictionary of 32x explains more than one of 8x.",
        "32x better than 8x at every layer shown",
        "4.2, figure 2",
        "gain in held-out EV.",
        "ev",
        "EV",
        1,
        0.005,
        "",
    ),
    "wider-cheaper": (
        "At the same L0, a dictionary of 32x costs the language model less than one of 8x.",
        "32x better than 8x at every layer shown",
        "4.2, figure 2",
        "ΔLM loss saved.",
        "loss",
        "nats",
        -1,
        0.005,
        "",
    ),
    "wider-rarer": (
        "The latents of a wider dictionary fire more rarely.",
        "wide dictionaries shift left",
        "4.4, figure 4",
        "fall of the median log10 firing frequency.",
        "frequency",
        "decades",
        -1,
        0.0,
        _RARER,
    ),
}
CLAIMS = [
    Claim(
        id=f"llama-scope.{name}",
        paper="llama-scope",
        section=section,
        statement=statement,
        paper_number=number,
        experiment=f"1,024 (8x) against 4,096 latents (32x) at k = 16, both trained to a plateau; {experiment}",
        control="How far dictionaries of different seeds and 8x lie apart.",
        rule=Rule("above", level, "beaten"),
        unit="seed of the dictionary",
        would_change="A gain of 32x below 0.005 once both have reached their plateau.",
        construction=construction,
        measure=_measure(column, unit, sign),
        needs=("demo store",),
        cost=17,
    )
    for name, (statement, number, section, experiment, column, unit, sign, level, construction) in ROWS.items()
]
