"""A Top-K dictionary becomes a JumpReLU one with a single threshold at no cost."""

from __future__ import annotations

import itertools

import pandas as pd

from sae import TopKConfig, to_jumprelu
from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab
from workbench.claims.recipe import plain

# What the bundled models' own dictionaries are given. One that is still far from trained overshoots where many latents
# fire at once.
STEPS = 600
L0_SHARE, EV_LOSS = 0.02, 0.005  # changes that would matter


def measure(lab: Lab) -> Finding:
    """Held-out L0 relative to k, and the change of EV; control: the threshold doubled."""
    d, k, rows = lab.heldout().shape[1], 16, []
    for seed in lab.each_seed():
        topk = lab.train(TopKConfig(d_in=d, d_sae=1024, k=k, seed=seed, **plain(1024)), steps=max(STEPS, lab.steps))
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
    return Finding(
        Measured.of(_used(table, k, "l0", "ev_jumprelu"), unit="of the change allowed"),
        Measured.of(_used(table, k, "l0_doubled", "ev_doubled"), unit="of the change allowed"),
        table,
        note,
    )


def _used(table: pd.DataFrame, k: int, l0: str, ev: str) -> pd.Series:
    """Per seed, how much of the change allowed is used: 1 = 2 % of L0, or 0.005 of explained variance."""
    parts = {"l0": (table[l0] / k - 1).abs() / L0_SHARE, "ev": (table.ev_topk - table[ev]) / EV_LOSS}
    return pd.DataFrame(parts).max(axis=1)


CLAIM = Claim(
    id="llama-scope.jumprelu-conversion",
    paper="llama-scope",
    section="3.3.4, figure 11",
    statement=(
        "Converting Top-K to JumpReLU with one global threshold leaves sparsity and explained variance as they are."
    ),
    paper_number="nearly identical over 32 dictionaries",
    experiment=(
        "Top-K dictionaries of 600 steps of 1,024 rows; threshold at the quantile of 32,768 training"
        " rows; the larger of"
        " the relative error of L0 (2 % = 1) and the loss of EV (0.005 = 1) on held-out rows."
    ),
    control="Twice that threshold.",
    rule=Rule("at most", 1.0, "outside"),
    unit="seed of the dictionary",
    would_change="An L0 more than 2 % off, or more than 0.005 of explained variance lost.",
    measure=measure,
    needs=("demo store",),
    cost=15,
)
