"""Similarity by layer, in both directions, from the comparison of the two bundled models; and what claims say of it.

The unit is a layer of either model: latents of one layer share a dictionary, a model and the text, and thousands of
them are not thousands of observations. All layers belong to one pair of trained models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.claims.base import Finding, Measured, untestable
from workbench.claims.lab import Lab

UNIT = "layer of either model, both directions; one pair of trained models"
RAW_IS_INPUT = "Raw correlation measures shared input; same-token is the token's part of it."


def by_layer(lab: Lab, series: Sequence[str]) -> pd.DataFrame:
    """Mean maximal correlation, a row per (direction, layer) that every series has, a column per series."""
    table = lab.comparison().table("baselines")
    part = table[table["series"].isin(list(series))].dropna(subset=["r"])
    wide = part.pivot_table(index=["direction", "layer"], columns="series", values="r", aggfunc="mean")
    return wide.reindex(columns=list(series)).dropna()


def missing(lab: Lab, series: Sequence[str]) -> Finding | None:
    """Why a series cannot be compared; None where all are there."""
    about = lab.comparison().metadata
    for s in series:
        if s not in about["series"]:
            why = next((v for k, v in about["missing"].items() if s.startswith(k.split(" ab")[0].split(" ba")[0])), "")
            return untestable(str(why or f"{s} was not computed"))
    return None


def readings(lab: Lab, sides: str = "cross", column: str = "mean") -> dict[str, Measured]:
    """``raw``, ``same-token`` and ``token-conditional`` of a pair of sides, over layers of both directions."""
    names = {"raw": sides} | {
        how: how if sides == "cross" else f"{sides} {how}" for how in ("same-token", "token-conditional")
    }
    have = {k: v for k, v in names.items() if v in lab.comparison().metadata["series"]}
    table = by_layer(lab, list(have.values())) if column == "mean" else share_by_layer(lab, list(have.values()), 0.7)
    return {
        k: Measured.of(table[v].to_numpy(), unit="correlation" if column == "mean" else "share")
        for k, v in have.items()
    }


def share_by_layer(lab: Lab, series: Sequence[str], level: float) -> pd.DataFrame:
    """Share of latents with a correlation of at least ``level``, as :func:`by_layer`."""
    table = lab.comparison().table("baselines")
    part = table[table["series"].isin(list(series))].dropna(subset=["r"]).assign(high=lambda t: t["r"] >= level)
    wide = part.pivot_table(index=["direction", "layer"], columns="series", values="high", aggfunc="mean")
    return wide.reindex(columns=list(series)).dropna()


def said(read: dict[str, Measured]) -> str:
    """``raw .63, same-token .51, token-conditional .37``."""
    return ", ".join(f"{k} {m.value:.3f}" for k, m in read.items())


def difference(lab: Lab, higher: str, lower: str, null: tuple[str, str], unit: str = "correlation") -> Finding:
    """Per layer, the mean of one series minus that of another; control: the same difference of their null series, which
    have as many candidates and share nothing.
    """
    if (why := missing(lab, (higher, lower, *null))) is not None:
        return why
    wanted = list(dict.fromkeys((higher, lower, *null)))
    table = by_layer(lab, wanted)
    read = readings(lab)
    both = table.reset_index().groupby("direction")[[higher, lower]].mean()
    ways = "; ".join(f"{d}: {r[lower]:.3f} < {r[higher]:.3f}" for d, r in both.iterrows())
    return Finding(
        Measured.of((table[higher] - table[lower]).to_numpy(), unit=unit),
        Measured.of((table[null[0]] - table[null[1]]).to_numpy(), unit=unit),
        table.reset_index(),
        f"by direction {ways}. {RAW_IS_INPUT} Cross: {said(read)}",
        more=read,
    )


def rank_by_layer(frame: pd.DataFrame, x: str, y: str, by: str) -> np.ndarray:
    """Partial rank correlation of two columns of latents within each (direction, layer), ``by`` held fixed."""
    from workbench.analysis.evolution.emergence import partial_spearman

    out = []
    for _, part in frame.dropna(subset=[x, y]).groupby(["direction", "layer"]):
        out.append(partial_spearman(part[x].to_numpy(), part[y].to_numpy(), np.log(part[by].to_numpy()), n=1).value)
    return np.array(out)
