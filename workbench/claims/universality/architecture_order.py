"""Which concepts come first in which architecture: does the order of the Transformer hold in the Mamba, and what is
late there?
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from workbench.analysis.evolution.architectures import (
    PARTS,
    Pair,
    exchanged,
    later_with_context,
    overall,
    pair_of,
    same_order,
    shuffled,
)
from workbench.analysis.evolution.emergence import Null
from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab
from workbench.results.lines import MIN_SHARED, recorded_lines

DRAWS = 200  # of each null
ORDER, LAG = 0.2, 0.25  # what counts: a rank correlation, and doublings of the training step
UNIT = "doublings of the step"


def pair_at(lab: Lab, seed: int) -> Pair:
    """The shared latents of one crosscoder with their curves in the Transformer and in the Mamba."""
    found = lab.architectures(seed)
    lines = recorded_lines(found.metadata)
    table = found.architectures
    of_first = table[table["model"] == lines[0].model].sort_values("latent")
    first, second = lines[:2]
    return pair_of(first, second, found.own("agreement").T, np.flatnonzero(of_first["shared"].to_numpy()), found.table)


def each_seed(
    lab: Lab, statistic: Callable[[Pair], float], null: Callable[[Pair, int], Null], unit: str
) -> tuple[Finding, list[Pair]]:
    """A statistic per seed beside what 97.5 % of its null stays below."""
    pairs = [pair_at(lab, seed) for seed in lab.each_seed()]
    least = min(len(p.open_F) for p in pairs)
    if least < MIN_SHARED:
        return untestable(f"{least} latents are shared by both models; {MIN_SHARED} are needed"), pairs
    nulls = [null(p, seed) for p, seed in zip(pairs, lab.each_seed(), strict=True)]
    rows = [
        {
            "seed": seed,
            "value": statistic(p),
            "null_mean": n.mean,
            "null_high": n.high,
            "p": n.p,
            "shared": len(p.open_F),
            "overall_lag": overall(p.lag(), p),
        }
        for seed, (p, n) in enumerate(zip(pairs, nulls, strict=True))
    ]
    table = pd.DataFrame(rows)
    effect, control = (Measured.of(table[c], unit=unit) for c in ("value", "null_high"))
    lag = Measured.of(table["overall_lag"], unit=UNIT)
    return Finding(effect, control, table, more={"median lag": lag}), pairs


def measure_order(lab: Lab) -> Finding:
    """Rank correlation of the emergence in both architectures, per seed; control: snapshots shuffled within each."""
    return each_seed(
        lab,
        same_order,
        lambda pair, seed: shuffled(pair, n=DRAWS, seed=seed),
        "rank correlation",
    )[0]


def measure_context(lab: Lab) -> Finding:
    """By how much later what the token leaves open comes in the Mamba, per seed; control: labels exchanged."""
    found, pairs = each_seed(
        lab,
        lambda pair: later_with_context(pair.lag(), pair),
        lambda pair, seed: exchanged(pair, later_with_context, n=DRAWS, seed=seed),
        UNIT,
    )
    if found.untestable:
        return found
    for k, part in enumerate(PARTS):
        lags = [float(np.nanmean(p.lag()[p.thirds() == k])) for p in pairs]
        found.more[f"lag of the third the token leaves {part} open"] = Measured.of(lags, unit=UNIT)
    return found


CURVES = (
    "A latent's curve in a model: agreement of the n rows with the model's own largest readings with the other model's"
    " at the end of its training, above chance; it emerges at half of its largest value, between snapshots along the"
    " doublings of the step. Shared: agreement of at least 0.3 at the end."
)
CLAIMS = [
    Claim(
        id="universality.same-order-in-training",
        paper="universality",
        section="open: which concepts come first in which architecture?",
        statement="Concepts that both architectures share emerge in the same order in both.",
        paper_number="not reported",
        experiment=(
            "One crosscoder over 11 snapshots each of the Transformer and the Mamba. "
            + CURVES
            + " Spearman correlation of the emergence in both over shared latents, frequency partialled out."
        ),
        control="What 97.5 % of the same with the snapshots shuffled within each model stay below.",
        rule=Rule("above", ORDER, "beaten"),
        unit="seed of the crosscoder; one training run of each model",
        would_change="An order that snapshots in random order show as well; models trained on other batches.",
        measure=measure_order,
        needs=("architectures",),
        cost=20,
    ),
    Claim(
        id="universality.context-later-in-mamba",
        paper="universality",
        section="open: which concepts come first in which architecture?",
        statement="What the current token leaves open comes later in the Mamba than in the Transformer, beyond what the"
        " token tells.",
        paper_number="not reported",
        experiment=(
            "One crosscoder over 11 snapshots each of the Transformer and the Mamba. "
            + CURVES
            + " Mean lag of the Mamba over the third of shared latents whose code the current token explains least,"
            " minus that over the third it explains most."
        ),
        control=(
            "What 97.5 % of the same stay below with the models' labels exchanged for a random half of the latents."
        ),
        rule=Rule("above", LAG, "beaten"),
        unit="seed of the crosscoder; one training run of each model",
        would_change="A lag that is the same for tokens and context; more training runs of either model.",
        measure=measure_context,
        needs=("architectures",),
        cost=20,
    ),
]
