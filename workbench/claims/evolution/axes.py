"""Does the turning point of decoder directions depend on how time is measured: by snapshot, by step, by the logarithm
of the step?
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from crosscoders.evolution import split_contrasts
from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab
from workbench.stats import interval95

DRAWS = 200
MIN_GROUP = 2  # snapshots on either side of a turning point, at the least


def weights_of(steps: np.ndarray) -> dict[str, np.ndarray]:
    """axis -> [S] how much of it every snapshot stands for: half the way to its neighbours on either side."""

    def spans(t: np.ndarray) -> np.ndarray:
        edges = np.concatenate([t[:1], (t[1:] + t[:-1]) / 2, t[-1:]])
        width = np.diff(edges)
        return width / width.sum()

    t = np.asarray(steps, np.float64)
    return {
        "snapshots": np.full(len(t), 1 / len(t)),
        "steps": spans(t),
        "log steps": spans(np.log(np.maximum(t, t[t > 0].min() / 2))),
    }


def turning(cosine_SS: np.ndarray, weights_S: np.ndarray, *, min_group: int = MIN_GROUP) -> int:
    """First snapshot of the second of two groups with the largest mean cosine within minus between, pairs weighted by
    ``weights``.
    """
    S, pair = len(weights_S), np.outer(weights_S, weights_S)
    pair = pair * ~np.eye(S, dtype=bool)
    best, at = -np.inf, -1
    for s in range(min_group, S - min_group + 1):
        same = np.zeros((S, S), dtype=bool)
        same[:s, :s] = same[s:, s:] = True
        inside, between = pair * same, pair * ~same
        contrast = (cosine_SS * inside).sum() / inside.sum() - (cosine_SS * between).sum() / between.sum()
        if contrast > best:
            best, at = contrast, s
    return at


def shift(cosine_SS: np.ndarray, steps: np.ndarray) -> tuple[int, dict[str, int]]:
    """(snapshots between the earliest and the latest turning point over the axes, turning point by axis)."""
    found = {axis: turning(cosine_SS, w) for axis, w in weights_of(steps).items()}
    return max(found.values()) - min(found.values()), found


def turns(cosine_SS: np.ndarray, rng: np.random.Generator) -> bool:
    """Whether there is a turning point at all: the best split into two groups is better than for 97.5 % of the orders
    the snapshots could have come in.
    """

    def best(order: np.ndarray) -> float:
        found: float = np.nanmax(split_contrasts(cosine_SS[np.ix_(order, order)], min_group=MIN_GROUP))
        return found

    S = len(cosine_SS)
    return best(np.arange(S)) > interval95([best(rng.permutation(S)) for _ in range(DRAWS)])[1]


def measure(lab: Lab) -> Finding:
    """Largest shift over axes, with a bootstrap over latents, in the worst seed; control: directions that drift evenly,
    snapshot by snapshot.
    """
    rows, notes, there = [], [], True
    for seed in lab.each_seed():
        evolution = lab.evolution(seed)
        alive = evolution.table.loc[evolution.table["alive"], "latent"].to_numpy()
        cosines = [evolution.cosines(int(i)) for i in alive]
        if any(c is None for c in cosines):
            return untestable("the sources of the crosscoder have no common directions")
        cos = np.nan_to_num(np.stack([c for c in cosines if c is not None]).astype(np.float64))
        found, by_axis = shift(cos.mean(0), evolution.steps)
        rng = np.random.default_rng(seed)
        drawn = [shift(cos[rng.integers(0, len(cos), len(cos))].mean(0), evolution.steps)[0] for _ in range(DRAWS)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        there &= turns(cos.mean(0), rng)
        rows.append({"seed": seed, "shift": found, "low": low, "high": high, "n": len(cos)} | by_axis)
        notes.append(", ".join(f"step {evolution.steps[i]:,} by {axis}" for axis, i in by_axis.items()))
    table = pd.DataFrame(rows)
    S = len(evolution.steps)
    even = 1 - np.abs(np.arange(S)[:, None] - np.arange(S)) / S
    drift = float(shift(even, evolution.steps)[0])
    floors = [axis for axis in weights_of(evolution.steps) if (table[axis] <= MIN_GROUP).any()]
    return Finding(
        Measured.of(table["shift"], unit="snapshots"),
        Measured.of([drift] * len(table), unit="snapshots"),
        table,
        f"turning point at {notes[0]}",
        open=(
            f"by {' and '.join(floors)} it is the least index that may be chosen"
            if floors
            else ""
            if there
            else "snapshots in random order split as well: there is no turning point"
        ),
    )


CLAIM = Claim(
    id="evolution.axes",
    paper="evolution",
    section="open: logarithmic against linear axes",
    statement="The turning point of decoder directions does not depend on the axis it is looked for on.",
    paper_number="snapshot index, about logarithmic; reviewers ask for a linear axis",
    experiment=(
        "Best two-group split of the cosine matrix with snapshots weighted alike, by the steps and by the log steps"
        " they stand for; snapshots between the earliest and the latest."
    ),
    control="Directions that drift evenly from snapshot to snapshot, whose turning point must follow the axis.",
    rule=Rule("at most", 1.0, "outside"),
    unit="seed of the crosscoder; one training run of the model",
    would_change="A turning point inside the range on every axis, or one that moves by more than a snapshot.",
    measure=measure,
    needs=("evolution",),
    cost=6,
)
