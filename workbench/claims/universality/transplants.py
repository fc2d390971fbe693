"""Does a matched latent do its partner's work in the other architecture, and does correlation foretell it?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab
from workbench.claims.universality.similarity import UNIT

LEAST = 10  # latents of a layer with fewer measured are not judged


def by_layer(lab: Lab) -> pd.DataFrame:
    """A row per transplant: medians of what each arm repairs over matched latents, and rank correlations over all.

    Columns: b (the dictionary whose latents are replaced), n, transplant, other, and <predictor> and <predictor>_other,
    Spearman's rank correlation of r or of r given the token with the share repaired.
    """
    rows: list[dict[str, Any]] = []
    for records in lab.transplants():
        summary, order = (
            records.table("summary").set_index("arm"),
            records.table("order").set_index(["predictor", "arm"]),
        )
        row = {"b": records.metadata["b"]["dictionary"], "n": int(summary.loc["transplant", "n"])}
        row |= {arm: float(summary.loc[arm, "median"]) for arm in ("transplant", "other")}
        for x in ("r", "r_given_token"):
            row |= {
                x: float(order.loc[(x, "transplant"), "value"]),
                f"{x}_other": float(order.loc[(x, "other"), "value"]),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _enough(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["n"] >= LEAST].replace([np.inf, -np.inf], np.nan).dropna() if len(table) else table


def _said(table: pd.DataFrame) -> str:
    return (
        f"repaired {table['transplant'].median():.2f}, by another's partner {table['other'].median():.2f}; rank"
        f" correlation with r {table['r'].mean():.2f}, given the token {table['r_given_token'].mean():.2f}"
    )


def _found(lab: Lab, effect: Any, control: Any, unit: str) -> Finding:
    table = _enough(by_layer(lab))
    if len(table) < 2:
        return untestable(f"{len(table)} layers have {LEAST} matched latents whose ablation does damage")
    return Finding(
        Measured.of(effect(table).to_numpy(), unit=unit),
        Measured.of(control(table).to_numpy(), unit=unit),
        table,
        _said(table),
    )


def repairs(lab: Lab) -> Finding:
    """Median share of the ablation's damage that partners repair; control: partners of other latents as frequent."""
    return _found(lab, lambda t: t["transplant"], lambda t: t["other"], "share of the damage")


def foretold(lab: Lab) -> Finding:
    """Rank correlation of r with the share repaired; control: with what another latent's partner repairs."""
    return _found(lab, lambda t: t["r"], lambda t: t["r_other"], "rank correlation")


def foretold_better(lab: Lab) -> Finding:
    """Rank correlation given the token minus raw; control: the same for another latent's partner."""
    return _found(
        lab,
        lambda t: t["r_given_token"] - t["r"],
        lambda t: t["r_given_token_other"] - t["r_other"],
        "rank correlation",
    )


_COMMON: dict[str, Any] = {
    "paper": "universality",
    "section": "open: what partners do",
    "paper_number": "not reported",
    "unit": UNIT,
    "needs": ("transplants",),
    "cost": 1.0,
}
CLAIMS = [
    Claim(
        id="universality.transplant-repairs",
        statement=(
            "A latent's partner in the other architecture does part of its work: put in its place it repairs the"
            " ablation's damage."
        ),
        experiment=(
            "Median share of the ablation's damage (KL) repaired by the partner's contribution, mapped by the decoders"
            " of other matched pairs, over matched latents, by layer; scales fitted on other sequences."
        ),
        control="The partner of another latent that fires about as often, mapped and fitted in the same way.",
        rule=Rule("above", 0.1, "beaten"),
        would_change="Partners that repair no more than those of other latents.",
        measure=repairs,
        **_COMMON,
    ),
    Claim(
        id="universality.correlation-foretells-transplants",
        statement="The higher a latent's correlation with its partner, the more of its work the partner does.",
        experiment="Rank correlation of maximal r with the share of the ablation's damage repaired, by layer.",
        control="The same with what the partner of another latent, as frequent, repairs.",
        rule=Rule("above", 0.2, "beaten"),
        would_change="Well correlated partners that repair no more than badly correlated ones.",
        measure=foretold,
        **_COMMON,
    ),
    Claim(
        id="universality.given-token-foretells-better",
        statement="Correlation given the token foretells a transplant's success better than raw correlation does.",
        experiment="Rank correlation with the share repaired: of r given the token minus of raw r, by layer.",
        control="The same difference with what the partner of another latent, as frequent, repairs.",
        rule=Rule("above", 0.05, "beaten"),
        would_change="Raw correlation that foretells as well.",
        measure=foretold_better,
        **_COMMON,
    ),
]
