"""Wider dictionaries explain more at the same sparsity."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch

from sae import TopKConfig
from workbench.claims.base import Claim, Finding, Measured, positive_beyond_control
from workbench.claims.lab import Lab

WIDTHS = (256, 512, 1024, 2048)


def _table(lab: Lab) -> pd.DataFrame:
    """One row per width and seed: ev, l0, added loss, median firing frequency (log10) of the latents that fired."""

    def make() -> pd.DataFrame:
        d, rows = lab.heldout().shape[1], []
        for f in WIDTHS:
            for s in lab.each_seed():
                made = lab.train(TopKConfig(d_in=d, d_sae=f, k=16, seed=s))
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
        """What every doubling of the width gains, per seed; and the difference between two seeds of one width."""
        table = _table(lab)
        by = sign * table.pivot(index="seed", columns="width", values=column)
        gains = (by[list(WIDTHS[1:])].to_numpy() - by[list(WIDTHS[:-1])].to_numpy()).ravel()
        same = (by.to_numpy() - by.to_numpy()[::-1]).ravel() if lab.seeds > 1 else []
        note = ", ".join(f"{w}: {v:.3f}" for w, v in table.groupby("width")[column].mean().items())
        return Finding(
            Measured.of(gains, unit=unit),
            Measured.of(same, unit=unit) if len(same) else None,
            table,
            f"{column} by width {note}",
        )

    return measure


# id -> (section, statement, the paper's number, experiment, column, unit, sign)
ROWS: dict[str, tuple[str, str, str, str, str, str, int]] = {
    "wider-better": (
        "4.2, figure 2",
        "At the same L0, a wider dictionary explains more.",
        "32x better than 8x at every layer shown",
        "gain in held-out EV per doubling.",
        "ev",
        "EV per doubling",
        1,
    ),
    "wider-cheaper": (
        "4.2, figure 2",
        "At the same L0, a wider dictionary costs the language model less.",
        "32x better than 8x at every layer shown",
        "ΔLM loss saved per doubling.",
        "loss",
        "nats per doubling",
        -1,
    ),
    "wider-rarer": (
        "4.4, figure 4",
        "The latents of a wider dictionary fire more rarely.",
        "wide dictionaries shift left",
        "fall of the median log10 firing frequency per doubling.",
        "frequency",
        "decades per doubling",
        -1,
    ),
}
CLAIMS = [
    Claim(
        id=f"llama-scope.{name}",
        paper="llama-scope",
        section=section,
        statement=statement,
        paper_number=number,
        experiment=f"Widths 256, 512, 1024, 2048 at k = 16; {experiment}",
        control="The difference between seeds of equal width.",
        criterion="95 % interval of the gain above zero and above the control's interval.",
        measure=_measure(column, unit, sign),
        holds=positive_beyond_control,
        needs=("demo store",),
        cost=8,
    )
    for name, (section, statement, number, experiment, column, unit, sign) in ROWS.items()
]
