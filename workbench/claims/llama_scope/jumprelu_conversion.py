"""A Top-K dictionary becomes a JumpReLU one with a single threshold at no cost."""

from __future__ import annotations

import itertools

import pandas as pd

from sae import TopKConfig, to_jumprelu
from workbench.claims.base import Claim, Finding, Measured
from workbench.claims.lab import Lab

# What the bundled models' own dictionaries are given. One that is still far from trained overshoots where many latents
# fire at once.
STEPS = 600


def measure(lab: Lab) -> Finding:
    """Held-out L0 relative to k, and the change of EV; control: the threshold doubled."""
    d, k, rows = lab.heldout().shape[1], 16, []
    for seed in lab.each_seed():
        topk = lab.train(TopKConfig(d_in=d, d_sae=1024, k=k, seed=seed), steps=max(STEPS, lab.steps))
        jump = to_jumprelu(topk, itertools.islice(iter(lab.rows(seed=100 + seed, batch=4096)), 8))
        before, after = lab.score(topk), lab.score(jump)
        jump.threshold_F.mul_(2)
        doubled = lab.score(jump)
        rows.append(
            {
                "seed": seed,
                "l0": after["l0"],
                "ev_topk": before["ev"],
                "ev_jumprelu": after["ev"],
                "l0_doubled": doubled["l0"],
                "ev_doubled": doubled["ev"],
            }
        )
    table = pd.DataFrame(rows)
    note = f"L0 {table.l0.mean():.2f} for k = {k}; EV {table.ev_topk.mean():.4f} -> {table.ev_jumprelu.mean():.4f}"
    effect = Measured.of((table.l0 / k - 1).abs(), unit="relative error of L0")
    return Finding(effect, Measured.of((table.l0_doubled / k - 1).abs(), unit="relative error of L0"), table, note)


def holds(finding: Finding) -> bool:
    """L0 within 2 % of k and EV within 0.005 in every seed; the doubled threshold breaks it."""
    table, c = finding.table, finding.control
    close = finding.effect.ceiling <= 0.02 and c is not None and c.value > 0.02
    return close and table is not None and float((table.ev_topk - table.ev_jumprelu).max()) <= 0.005


CLAIM = Claim(
    id="llama-scope.jumprelu-conversion",
    paper="llama-scope",
    section="3.3.4, figure 11",
    statement=(
        "Converting Top-K to JumpReLU with one global threshold leaves sparsity and explained variance as they are."
    ),
    paper_number="nearly identical over 32 dictionaries",
    experiment=(
        "Top-K dictionaries of 600 steps of 1,024 rows; threshold at the quantile of 32,768 training rows; L0 and EV on"
        " held-out rows."
    ),
    control="Twice that threshold.",
    criterion="Relative error of L0 at most 2 % and loss of EV at most 0.005; the control beyond 2 %.",
    measure=measure,
    holds=holds,
    needs=("demo store",),
    cost=15,
)
