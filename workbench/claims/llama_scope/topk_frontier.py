"""Top-K dictionaries explain more than L1 ones at the same sparsity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sae import SAEConfig, TopKConfig
from sae.config import ActivationConfig
from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab
from workbench.claims.recipe import plain

KS, PENALTIES = (8, 16, 32, 64), (0.5, 1.0, 2.0, 4.0)
RATES = (4e-3, 1e-2)  # both arms are given the better of these at every point: what suits one of them must not decide
WIDTH = 1024


def _points(lab: Lab) -> tuple[pd.DataFrame, dict[int, dict[Any, Any]]]:
    """Every arm's EV and L0, and by seed the dictionaries: arm, knob, learning rate -> dictionary."""

    def make() -> Any:
        d, rows = lab.heldout().shape[1], []
        made: dict[int, dict[Any, Any]] = {s: {} for s in lab.each_seed()}
        for seed in lab.each_seed():
            for lr in RATES:
                configs: list[tuple[str, float, Any]] = [
                    ("topk", k, TopKConfig(d_in=d, d_sae=WIDTH, k=k, seed=seed, **plain(WIDTH, lr))) for k in KS
                ]
                for c in PENALTIES:
                    l1 = ActivationConfig(kind="l1", coefficient=c, warmup=lab.steps // 10)
                    configs.append(
                        ("l1", c, SAEConfig(d_in=d, d_sae=WIDTH, k=16, activation=l1, seed=seed, **plain(WIDTH, lr)))
                    )
                for arm, knob, config in configs:
                    made[seed][arm, knob, lr] = lab.train(config)
                    rows.append(
                        {"arm": arm, "knob": knob, "lr": lr, "seed": seed} | lab.score(made[seed][arm, knob, lr])
                    )
        return pd.DataFrame(rows), made

    found: tuple[pd.DataFrame, dict[int, dict[Any, Any]]] = lab.once("frontier", make)
    return found


def gaps_at_equal_l0(table: pd.DataFrame) -> pd.DataFrame:
    """Per seed: the mean over k inside the L1 frontier's range of L0 of EV (or another quality ``ev``) of Top-K minus
    that of L1 at equal log L0; and the mean size of the same difference between Top-K and its other seeds.
    """
    rows = []
    for seed, part in table.groupby("seed"):
        l1, topk = frontier(part[part.arm == "l1"]), best(part)
        inside = topk[(topk.l0 >= l1.l0.min()) & (topk.l0 <= l1.l0.max())]
        gaps = inside.ev - np.interp(np.log(inside.l0), np.log(l1.l0), l1.ev)
        others = [best(p) for s, p in table.groupby("seed") if s != seed]
        apart = [float(np.abs(topk.ev.to_numpy() - o.ev.to_numpy()).mean()) for o in others]
        rows.append(
            {
                "seed": seed,
                "gap": float(gaps.mean()) if len(gaps) else np.nan,
                "points": len(gaps),
                "between_seeds": float(np.mean(apart)) if apart else np.nan,
            }
        )
    return pd.DataFrame(rows)


def measure(lab: Lab) -> Finding:
    """EV of Top-K minus EV of L1, interpolated at equal log L0; and Top-K against another seed of itself."""
    table, _ = _points(lab)
    by = gaps_at_equal_l0(table)
    note = (
        f"{by.points.sum()} points (seed × k) inside the L1 frontier's range of L0; {lab.steps} steps of 1,024 rows in"
        " both arms: the gap shrinks as both are trained longer"
    )
    return Finding(Measured.of(by.gap, unit="EV"), Measured.of(by.between_seeds, unit="EV"), table, note)


def measure_loss(lab: Lab) -> Finding:
    """The same for the loss added to the language model: L1's minus Top-K's at equal log L0."""
    points, made = _points(lab)
    kept = []
    for (arm, _, seed), part in points.groupby(["arm", "knob", "seed"]):
        row = part.loc[part.ev.idxmax()]  # at the better learning rate, by EV in both arms
        kept.append(row.to_dict() | {"ev": -lab.added_loss(made[int(str(seed))][arm, row.knob, row.lr])})
    table = pd.DataFrame(kept)
    by = gaps_at_equal_l0(table)
    table = table.rename(columns={"ev": "minus_added_loss"})
    topk = table[table.arm == "topk"].groupby("knob").minus_added_loss.mean()
    note = f"{by.points.sum()} points; Top-K adds " + ", ".join(
        f"{-v:.2f} nats at k = {k:.0f}" for k, v in topk.items()
    )
    return Finding(Measured.of(by.gap, unit="nats"), Measured.of(by.between_seeds, unit="nats"), table, note)


def best(part: pd.DataFrame) -> pd.DataFrame:
    """The Top-K rows of one seed, the better learning rate of each k."""
    topk = part[part.arm == "topk"]
    return topk.loc[topk.groupby("knob").ev.idxmax()].sort_values("l0")


def frontier(points: pd.DataFrame) -> pd.DataFrame:
    """Those points (l0, ev) that no other point beats at a lower or equal L0, by rising L0."""
    ordered = points.sort_values(["l0", "ev"], ascending=[True, False])
    return ordered[ordered.ev > ordered.ev.cummax().shift(fill_value=-np.inf)]


CLAIMS = [
    Claim(
        id="llama-scope.topk-frontier",
        paper="llama-scope",
        section="4.2, figure 2",
        statement="Top-K dictionaries reach a higher explained variance than L1 (vanilla) ones at the same L0.",
        paper_number="L0 from about 150 to 50 at equal or better explained variance",
        experiment=(
            "Four k against four L1 weights on the same rows and steps, each at the better of two learning rates; EV of"
            " Top-K minus that of the L1 frontier at equal L0 (interpolated in log L0)."
        ),
        control="The size of the same difference between Top-K dictionaries of different seeds.",
        rule=Rule("above", 0.0, "beaten"),
        unit="seed of the dictionaries",
        would_change="A gap that vanishes when both are trained to a plateau.",
        measure=measure,
        needs=("demo store",),
        cost=100,
    ),
    Claim(
        id="llama-scope.topk-frontier-loss",
        paper="llama-scope",
        section="4.2, figure 2",
        statement="Top-K dictionaries cost the language model less than L1 (vanilla) ones at the same L0.",
        paper_number="L0 from about 150 to 50 at equal or better ΔLM loss",
        experiment=(
            "Four k against four L1 weights on the same rows and steps, each at the better of two learning rates; ΔLM"
            " loss of the L1 frontier minus that of Top-K at equal L0 (interpolated in log L0), in nats."
        ),
        control="The size of the same difference between Top-K dictionaries of different seeds.",
        rule=Rule("above", 0.0, "beaten"),
        unit="seed of the dictionaries",
        would_change="A gap that vanishes when both are trained to a plateau.",
        measure=measure_loss,
        needs=("demo store",),
        cost=15,
    ),
]
