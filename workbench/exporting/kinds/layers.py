"""Figures of a comparison layer by layer: how well layers match, and where the partners lie."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.kinds.universality import DirectionOptions, about
from workbench.results.matches import MatchRecords
from workbench.workspace import Item, Workspace


class LayerOptions(DirectionOptions):
    """Options of ``mppc_layers``."""

    statistic: Literal["mean", "median", "q90", "share_50"] = Field(
        "mean", description="what is shown of the latents of a pair of layers"
    )


@figure("mppc_layers", source="matches", options=LayerOptions)
def mppc_layers(workspace: Workspace, item: Item, options: LayerOptions) -> FigureData:
    """Maximal correlation for every pair of layers."""
    records = MatchRecords.open(item.path)
    frame = records.table("layers")
    frame = frame[frame["direction"] == options.direction].reset_index(drop=True)
    mine, other = records.names(options.direction)
    what = {
        "mean": "mean maximal r",
        "median": "median maximal r",
        "q90": "90 % quantile of maximal r",
        "share_50": "share with r ≥ 0.5",
    }[options.statistic]
    wide = frame.pivot(index="layer", columns="partner_layer", values=options.statistic)
    wide.columns = [f"layer {c}" for c in wide.columns]
    return FigureData(
        panels=[
            Panel(
                "heat",
                frame,
                x="partner_layer",
                y="layer",
                value=options.statistic,
                x_label=f"layer of {other}",
                y_label=f"layer of {mine}",
                value_label=what,
            )
        ],
        caption=(
            f"{what[0].upper()}{what[1:]} of the latents of {mine} (rows) with those of one layer of {other} (columns)."
        ),
        table=wide.reset_index(),
        n={"layer pairs": len(frame), "tokens": int(records.metadata["n_tokens"])},
        alt=f"Heat map of {what} by layer of {mine} and layer of {other}.",
        **about(records, item, options.direction),
    )


@figure("mppc_depth", source="matches", options=DirectionOptions)
def mppc_depth(workspace: Workspace, item: Item, options: DirectionOptions) -> FigureData:
    """In which layers the best partners of matched latents lie."""
    records = MatchRecords.open(item.path)
    frame = records.table("depth")
    frame = frame[frame["direction"] == options.direction].reset_index(drop=True)
    total = frame.groupby("layer")["count"].transform("sum")
    frame["share"] = np.where(total > 0, frame["count"] / total.clip(lower=1), np.nan)
    mine, other = records.names(options.direction)
    rho = records.manifest.numbers[options.direction]["depth_rank_correlation"]
    said = (
        ""
        if rho["value"] is None
        else f" Rank correlation of relative depths {rho['value']:.3f} [{rho['low']:.3f}, {rho['high']:.3f}]."
    )
    wide = frame.pivot(index="layer", columns="partner_layer", values="count")
    wide.columns = [f"layer {c}" for c in wide.columns]
    return FigureData(
        panels=[
            Panel(
                "heat",
                frame,
                x="partner_layer",
                y="layer",
                value="share",
                x_label=f"layer of the partner in {other}",
                y_label=f"layer of {mine}",
                value_label="share of matched latents",
            )
        ],
        caption=(
            f"Where the best partners of matched latents of {mine} (r ≥ {records.metadata['level']}) lie in {other};"
            f" rows sum to one.{said}"
        ),
        table=wide.reset_index(),
        n={"matched latents": int(frame["count"].sum()), "tokens": int(records.metadata["n_tokens"])},
        alt=f"Heat map of partner layers in {other} by layer of {mine}.{said}",
        **about(records, item, options.direction),
    )
