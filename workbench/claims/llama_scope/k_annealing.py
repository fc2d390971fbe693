"""Starting with many latents per row keeps more of them alive, and ends at the same error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sae import SAEConfig
from sae.config import ActivationConfig, InitConfig
from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab
from workbench.claims.recipe import plain

WIDTH, K, STEPS = 1024, 16, 600  # as many steps as the bundled models' own dictionaries are given
ANNEALING = 0.1  # share of the steps in which k falls, as in the paper
WINDOW = 8192  # rows without firing after which a latent counts as dead, scaled to these short runs
RATE = 4e-3  # what suits a run this short; the paper's 8e-4 is for runs of billions of rows
# The paper's own starting norm of decoders, sqrt(2 / expansion). A norm searched at the final k is far too long while
# k is still the width of the data, and kills the latents annealing is there to keep.
START = InitConfig(scaling="mean-norm", norm=(2 / (WIDTH / 128)) ** 0.5, encoder="tied", bias="zero", pre_bias=False)
MARGIN = 0.01  # of explained variance
AGAIN = 100  # added to the seed of the control: the same run without annealing, from other starts


def _arm(lab: Lab, k_start: int, seed: int, k: int = K) -> dict[str, float]:
    """Mean share of latents alive once both arms keep k for a whole window, the same at the end, and held-out EV."""
    d, steps = lab.heldout().shape[1], max(STEPS, lab.steps)
    log: list[dict[str, float]] = []
    config = SAEConfig(
        d_in=d, d_sae=WIDTH, k=k, seed=seed, activation=ActivationConfig(kind="norm-topk"), start=START,
        **plain(WIDTH, RATE),
        k_start=k_start, k_anneal_share=ANNEALING, k_aux=0, revive=False, dead_after=WINDOW,
    )  # fmt: skip
    made = lab.train(config, steps=steps, log=log)
    after = ANNEALING * steps * 1024 + WINDOW
    dead = np.array([row["dead"] for row in log if (row["step"] + 1) * 1024 > after])
    return {"alive": float(1 - dead.mean() / WIDTH), "alive_end": float(1 - dead[-1] / WIDTH)} | lab.score(made)


def _table(lab: Lab) -> pd.DataFrame:
    """One row per seed and arm: annealed, plain, plain with other seeds, and plain with half the k."""

    def make() -> pd.DataFrame:
        d = lab.heldout().shape[1]
        arms = {"annealed": (d, K, 0), "plain": (0, K, 0), "again": (0, K, AGAIN), "half": (0, K // 2, 0)}
        return pd.DataFrame(
            [
                {"seed": s, "arm": arm} | _arm(lab, start, s + other, k)
                for s in lab.each_seed()
                for arm, (start, k, other) in arms.items()
            ]
        )

    table: pd.DataFrame = lab.once("k-annealing", make)
    return table


def _note(table: pd.DataFrame) -> str:
    by = table.groupby("arm")[["ev", "alive", "alive_end"]].mean()
    return "; ".join(
        f"{arm}: EV {by.ev[arm]:.3f}, {by.alive[arm]:.3f} alive on average and {by.alive_end[arm]:.3f} at the end"
        for arm in ("annealed", "plain")
    )


def _arms(table: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    return {str(arm): part[column].to_numpy() for arm, part in table.sort_values("seed").groupby("arm")}


def measure_alive(lab: Lab) -> Finding:
    """Mean alive share with annealing from d minus without; control: without, from other seeds, minus without."""
    table = _table(lab)
    alive = _arms(table, "alive")
    return Finding(
        Measured.of(alive["annealed"] - alive["plain"], unit="share alive"),
        Measured.of(alive["again"] - alive["plain"], unit="share alive"),
        table,
        _note(table),
    )


def measure_error(lab: Lab) -> Finding:
    """Final EV with annealing minus without; control: half the k minus the full one, a real difference."""
    table = _table(lab)
    ev = _arms(table, "ev")
    return Finding(
        Measured.of(ev["plain"] - ev["annealed"], unit="EV lost"),
        Measured.of(ev["plain"] - ev["half"], unit="EV lost"),
        table,
        _note(table),
    )


_EXPERIMENT = (
    "The paper's recipe (decoder-norm selection, tied start at the paper's norm sqrt(2 / expansion), no AuxK, no"
    " revival), 600 steps of 1,024 rows, k from d to 16 over the first 10 % of them against k = 16 throughout; "
)
_SHARED: dict[str, Any] = {"paper": "llama-scope", "section": "3.3.2, figure 12", "unit": "seed of the dictionary"}
CLAIMS = [
    Claim(
        id="llama-scope.k-annealing",
        statement="K-annealing keeps more latents alive through training.",
        paper_number="without it latents start firing only after a third of training",
        experiment=_EXPERIMENT + "mean share of latents that fired in the last 8,192 rows, once both arms keep 16.",
        control="The same difference between runs without annealing from different seeds.",
        rule=Rule("above", 0.01, "beaten"),
        would_change="A gain of less than a hundredth of the latents.",
        measure=measure_alive,
        needs=("demo store",),
        cost=60,
        **_SHARED,
    ),
    Claim(
        id="llama-scope.k-annealing-error",
        statement="K-annealing ends at no larger an error than training without it.",
        paper_number="both reach the same error, the annealed run sooner",
        experiment=_EXPERIMENT + "final held-out EV without annealing minus with it.",
        control="Half the k, a real difference.",
        rule=Rule("at most", MARGIN, "outside"),
        would_change="More than 0.01 of explained variance lost to annealing.",
        measure=measure_error,
        needs=("demo store",),
        **_SHARED,
    ),
]
