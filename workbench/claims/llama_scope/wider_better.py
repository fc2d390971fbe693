"""Wider dictionaries explain more at the same sparsity."""

from __future__ import annotations

import pandas as pd

from sae import TopKConfig
from workbench.claims.base import Claim, Finding, Measured, positive_beyond_control
from workbench.claims.lab import Lab

WIDTHS = (256, 512, 1024, 2048)


def measure(lab: Lab) -> Finding:
    """EV gained by every doubling of the width, per seed; and the difference between two seeds of one width."""
    d = lab.heldout().shape[1]
    rows = [
        {"width": f, "seed": s} | lab.score(lab.train(TopKConfig(d_in=d, d_sae=f, k=16, seed=s))) for f in WIDTHS for s in lab.each_seed()
    ]
    table = pd.DataFrame(rows)
    by = table.pivot(index="seed", columns="width", values="ev")
    gains = (by[list(WIDTHS[1:])].to_numpy() - by[list(WIDTHS[:-1])].to_numpy()).ravel()
    same = (by.to_numpy() - by.to_numpy()[::-1]).ravel() if lab.seeds > 1 else []
    return Finding(Measured.of(gains, unit="EV per doubling"), Measured.of(same, unit="EV") if len(same) else None, table)


CLAIM = Claim(
    id="llama-scope.wider-better",
    paper="llama-scope",
    section="4.2, figure 2",
    statement="At the same L0, a wider dictionary explains more.",
    paper_number="32x better than 8x at every layer shown",
    experiment="Widths 256, 512, 1024, 2048 at k = 16; gain in held-out EV per doubling.",
    control="The difference between seeds of equal width.",
    criterion="95 % interval of the gain above zero and above the control's interval.",
    measure=measure,
    holds=positive_beyond_control,
)
