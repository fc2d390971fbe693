"""Do complex and monosemantic latents have better partners? Proxies that measure token-determination are called so.

The offline proxies of complexity and monosemanticity are about how far tokens determine a latent. Raw similarity is
mostly about that, too, so the two correlate even with partners that have random weights. What is asked here is whether
they do once the token is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab
from workbench.claims.universality.similarity import missing, rank_by_layer

TC = "token-conditional"


def _table(lab: Lab) -> pd.DataFrame:
    """One row per latent of both models: direction, layer, n_fired, complexity, monosemanticity (NaN below 30 firings),
    and its best correlation in every series that is asked for.
    """

    def make() -> pd.DataFrame:
        from workbench.analysis.comparison.complexity import complexity_table
        from workbench.analysis.latents.encoded import Codes

        records = lab.comparison()
        best, baselines = records.best, records.table("baselines")
        series = ["cross", "random partner", "same-token", TC, f"random partner {TC}"]
        wide = baselines[baselines["series"].isin(series)].pivot_table(
            index=["direction", "layer", "latent"], columns="series", values="r"
        )
        seq, pos, ids = records.places()
        frames = []
        for (direction, dictionary), part in best.groupby(["direction", "dictionary"]):
            indptr, row, value = records.entries(str(dictionary))
            codes = Codes(len(indptr) - 1, ids, seq, pos, np.asarray(indptr), np.asarray(row), np.asarray(value))
            proxies = complexity_table(codes, len(records.vocab)).drop(columns="n_fired")
            own = part[["layer", "latent", "n_fired"]].assign(direction=direction)
            frames.append(own.merge(proxies, on="latent"))
        return pd.concat(frames, ignore_index=True).join(wide, on=["direction", "layer", "latent"])

    table: pd.DataFrame = lab.once("simplicity", make)
    return table


def _measure(proxy: str) -> Callable[[Lab], Finding]:
    def measure(lab: Lab) -> Finding:
        """Partial rank correlation of the proxy and the token-conditional correlation within each layer; control: with
        random-weight partners.
        """
        if (why := missing(lab, (TC, f"random partner {TC}"))) is not None:
            return why
        table = _table(lab)
        found = {s: rank_by_layer(table, proxy, s, "n_fired") for s in (TC, f"random partner {TC}")}
        other = {
            s: float(np.mean(rank_by_layer(table, proxy, s, "n_fired")))
            for s in ("cross", "random partner", "same-token")
        }
        note = (
            f"the proxy measures token-determination: with raw similarity it correlates {other['cross']:+.2f}, with"
            f" random-weight partners {other['random partner']:+.2f}, same-token {other['same-token']:+.2f}"
        )
        effect, control = (Measured.of(v, unit="partial rank correlation") for v in found.values())
        more = {"raw": other["cross"], "random partner": other["random partner"], "same-token": other["same-token"]}
        return Finding(effect, control, None, note, more=more | {TC: effect})

    return measure


_COMMON: dict[str, Any] = {
    "paper": "universality",
    "section": "4.3, figure 5",
    "control": "The same with random-weight encoders of the same firing rates as partners.",
    "unit": "layer of either model, both directions; one pair of trained models",
    "needs": ("comparison",),
    "cost": 20.0,
}
CLAIMS = [
    Claim(
        id="universality.complexity",
        statement=(
            "Given the token, the less tokens determine a latent (complexity), the less similar its best partner."
        ),
        paper_number="negative correlation of MPPC and complexity as rated by a language model",
        experiment=(
            "Spearman of the offline complexity proxy with the token-conditional correlation in the other model, firing"
            " frequency partialled out, within each layer."
        ),
        rule=Rule("below", 0.0, "beaten"),
        would_change="A negative correlation once the token is taken out, beyond random-weight partners.",
        measure=_measure("complexity"),
        **_COMMON,
    ),
    Claim(
        id="universality.monosemanticity",
        statement=(
            "Given the token, the fewer tokens a latent fires on (monosemanticity), the more similar its best partner."
        ),
        paper_number="positive correlation of MPPC and monosemanticity as rated by a language model",
        experiment=(
            "Spearman of the offline monosemanticity proxy with the token-conditional correlation in the other model,"
            " firing frequency partialled out, within each layer."
        ),
        rule=Rule("above", 0.0, "beaten"),
        would_change="A positive correlation once the token is taken out, beyond random-weight partners.",
        measure=_measure("monosemanticity"),
        **_COMMON,
    ),
]
