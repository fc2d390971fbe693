"""Starting with many latents per row keeps more of them alive early in training."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sae import TopKConfig
from workbench.claims.base import Claim, Finding, Measured, positive_beyond_control
from workbench.claims.lab import Lab

ANNEALING = 0.3  # share of the steps in which k falls
WINDOW = 8192  # rows without firing after which a latent counts as dead, scaled to these short runs


def _alive(lab: Lab, k_start: int, seed: int) -> tuple[float, float]:
    """(mean share of latents alive once k = 16 is kept in both arms, final held-out EV) without any help for dead latents."""
    d = lab.heldout().shape[1]
    log: list[dict[str, float]] = []
    config = TopKConfig(d_in=d, d_sae=2048, k=16, seed=seed, k_start=k_start, k_anneal_share=ANNEALING, k_aux=0, dead_after=WINDOW)
    dictionary = lab.train(config, log=log)
    after = ANNEALING * lab.steps * 1024 + WINDOW  # rows after which both arms have kept 16 for a whole window
    dead = np.array([row["dead"] for row in log if (row["step"] + 1) * 1024 > after])
    return float(1 - dead.mean() / 2048), lab.score(dictionary)["ev"]


def measure(lab: Lab) -> Finding:
    """Mean alive share with annealing from d minus without; control: two seeds without annealing."""
    d = lab.heldout().shape[1]
    rows = []
    for seed in lab.each_seed():
        (on, ev_on), (off, ev_off) = _alive(lab, d, seed), _alive(lab, 0, seed)
        rows.append({"seed": seed, "alive_annealed": on, "alive_plain": off, "ev_annealed": ev_on, "ev_plain": ev_off})
    table = pd.DataFrame(rows)
    same = table.alive_plain - table.alive_plain.to_numpy()[::-1]
    note = f"final EV {table.ev_annealed.mean():.3f} with, {table.ev_plain.mean():.3f} without"
    return Finding(
        Measured.of(table.alive_annealed - table.alive_plain, unit="share alive"), Measured.of(same, unit="share alive"), table, note
    )


CLAIM = Claim(
    id="llama-scope.k-annealing",
    paper="llama-scope",
    section="3.3.2, figure 12",
    statement="K-annealing keeps more latents alive through training, at the same final error.",
    paper_number="without it latents start firing only after a third of training",
    experiment="k from d to 16 over the first 30 % of steps against k = 16 throughout, AuxK off; mean share of latents that fired in the last 8,192 rows, once both arms keep 16.",
    control="The same difference between seeds without annealing.",
    criterion="95 % interval of the difference above zero and above the control's interval.",
    measure=measure,
    holds=positive_beyond_control,
    needs=("demo store",),
    cost=20,
)
