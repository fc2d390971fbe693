"""Simple and monosemantic latents are the ones that are shared between architectures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, negative_beyond_control, positive_beyond_control
from workbench.claims.lab import Lab


def _table(lab: Lab) -> pd.DataFrame:
    """One row per latent of the Transformer: r, n_fired, complexity, monosemanticity (NaN below 30 firings)."""

    def make() -> pd.DataFrame:
        from workbench.analysis.comparison.complexity import complexity_table
        from workbench.analysis.latents.encoded import Codes

        records = lab.comparison()
        best = records.best[records.best.direction == "ab"]
        seq, pos, ids = records.places()
        frames = []
        for dictionary, part in best.groupby("dictionary"):
            indptr, row, value = records.entries(str(dictionary))
            codes = Codes(len(indptr) - 1, ids, seq, pos, np.asarray(indptr), np.asarray(row), np.asarray(value))
            proxies = complexity_table(codes, len(records.vocab))
            frames.append(part[["latent", "n_fired", "r"]].merge(proxies.drop(columns="n_fired"), on="latent"))
        return pd.concat(frames, ignore_index=True)

    return lab.once("simplicity", make)


def _measure(proxy: str) -> Callable[[Lab], Finding]:
    def measure(lab: Lab) -> Finding:
        """Spearman of the proxy and the best correlation, firing counts partialled out; control: partners exchanged at
        equal frequency.
        """
        from workbench.analysis.evolution.emergence import partial_spearman

        table = _table(lab).dropna(subset=["r", proxy])
        frequency = np.log(table.n_fired.to_numpy())
        found = partial_spearman(table[proxy].to_numpy(), table.r.to_numpy(), frequency)
        decile = pd.qcut(table.n_fired.rank(method="first"), 10, labels=False)
        rng = np.random.default_rng(0)
        null = [
            partial_spearman(
                table[proxy].to_numpy(), table.groupby(decile).r.transform(rng.permutation).to_numpy(), frequency, n=1
            ).value
            for _ in range(100)
        ]
        low, high = np.quantile(null, [0.025, 0.975])
        control = Measured(float(np.mean(null)), float(low), float(high), len(null), "rank correlation")
        plain = partial_spearman(table[proxy].to_numpy(), table.r.to_numpy(), n=1).value
        effect = Measured(found.value, found.low, found.high, found.n, "partial rank correlation")
        return Finding(effect, control, table, f"without partialling out frequency: {plain:.2f}")

    return measure


_EXPERIMENT = (
    "Spearman of the offline {} proxy (held-out halves) with the best correlation in the Mamba, firing frequency"
    " partialled out."
)
_CONTROL = "Best correlations exchanged among latents of the same frequency decile, 100 times."
CLAIMS = [
    Claim(
        id="universality.complexity",
        paper="universality",
        section="4.3, figure 5",
        statement="The more complex a latent, the less similar its best partner in the other architecture.",
        paper_number="negative correlation of MPPC and complexity as rated by a language model",
        experiment=_EXPERIMENT.format("complexity"),
        control=_CONTROL,
        criterion="95 % interval below zero and below the control's.",
        measure=_measure("complexity"),
        holds=negative_beyond_control,
        needs=("comparison",),
        cost=20,
    ),
    Claim(
        id="universality.monosemanticity",
        paper="universality",
        section="4.3, figure 5",
        statement="The more monosemantic a latent, the more similar its best partner in the other architecture.",
        paper_number="positive correlation of MPPC and monosemanticity as rated by a language model",
        experiment=_EXPERIMENT.format("monosemanticity"),
        control=_CONTROL,
        criterion="95 % interval above zero and above the control's.",
        measure=_measure("monosemanticity"),
        holds=positive_beyond_control,
        needs=("comparison",),
        cost=20,
    ),
]
