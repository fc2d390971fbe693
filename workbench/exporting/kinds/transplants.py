"""Figures of a transplant (``transplants/``): what partners repair in each other's place, along their correlation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.results.transplants import PREDICTOR_NAMES, SHOWN, TransplantRecords
from workbench.workspace import Item, Workspace

HEADINGS = {"low": "95 % from", "high": "to", "n": "latents", "x_low": "from", "x_high": "to"}
LABEL = "share of the ablation's damage repaired"


class CurveOptions(StrictConfig):
    """Options of ``transplant_curve``: what transplants are held against."""

    predictor: Literal["r", "r_given_token", "cosine"] = Field(
        "r", description="what the repaired share is held against: r, r given the token, or the cosine of directions"
    )


class ArmsOptions(StrictConfig):
    """``transplant_arms`` has no options."""


def _about(records: TransplantRecords, item: Item, **extra: Any) -> dict[str, Any]:
    m = records.metadata
    query = "".join(f"&{k}={v}" for k, v in extra.items())
    return {
        "inputs": [item],
        "references": ("universality", *of_models([str(m["a"]["model"]), str(m["b"]["model"])])),
        "permalink": f"mppc?m={m['matches']}&tr={item.id}{query}&trv={item.version}",
    }


def _who(records: TransplantRecords) -> str:
    m = records.metadata
    return f"latents of {m['b']['dictionary']}, their partners in {m['a']['dictionary']}"


@figure("transplant_curve", source="transplants", options=CurveOptions)
def transplant_curve(workspace: Workspace, item: Item, options: CurveOptions) -> FigureData:
    """Share of the ablation's damage repaired by a latent's partner, along their correlation."""
    records = TransplantRecords.open(item.path)
    curve, order = records.table("curve"), records.table("order")
    frame = curve[curve["predictor"] == options.predictor].drop(columns="predictor").reset_index(drop=True)
    frame["arm"] = [SHOWN[a] for a in frame["arm"]]
    rank = order[(order["predictor"] == options.predictor) & (order["arm"] == "transplant")].iloc[0]
    name = PREDICTOR_NAMES[options.predictor]
    said = (
        f" Spearman's rank correlation over latents: {rank['value']:.2f} [{rank['low']:.2f}, {rank['high']:.2f}],"
        f" n = {int(rank['n'])}."
        if rank["value"] == rank["value"]
        else ""
    )
    return FigureData(
        panels=[
            Panel(
                "line",
                frame,
                x="x",
                y="median",
                low="low",
                high="high",
                series="arm",
                x_label=name,
                y_label=LABEL,
                dashed=(SHOWN["other"],),
            )
        ],
        caption=(
            f"What a partner repairs in a latent's place ({_who(records)}): 1 = the model goes on as if nothing had"
            f" been done, 0 = no better than nothing. Medians of bins with equally many latents along {name}, bands are"
            f" 95 % bootstrap intervals over latents; dashed: the partner of another latent that fires about as"
            f" often.{said}"
        ),
        table=frame[["arm", "x_low", "x_high", "n", "median", "low", "high"]],
        n={"latents": len(records.pairs), "sequences drawn from": int(records.metadata["n_sequences"])},
        columns=HEADINGS,
        alt=f"Median share of damage repaired along {name}, for the partner and for another latent's partner.",
        **_about(records, item, along=options.predictor),
    )


@figure("transplant_arms", source="transplants", options=ArmsOptions)
def transplant_arms(workspace: Workspace, item: Item, options: ArmsOptions) -> FigureData:
    """Share of the ablation's damage that partners, nulls and the ceiling repair."""
    records = TransplantRecords.open(item.path)
    frame = records.table("summary").assign(arm=lambda t: [SHOWN[a] for a in t["arm"]])
    return FigureData(
        panels=[Panel("points", frame, x="arm", y="median", low="low", high="high", y_label=LABEL)],
        caption=(
            f"Median share of the ablation's damage repaired over matched latents ({_who(records)}), with 95 %"
            f" bootstrap intervals over latents. Ceiling: {records.metadata['ceiling']}."
        ),
        table=frame[["arm", "n", "median", "low", "high", "pooled"]],
        n={
            "matched latents": int(item.manifest.numbers["matched"]),
            "sequences drawn from": int(records.metadata["n_sequences"]),
        },
        columns=HEADINGS | {"pooled": "of all damage"},
        alt="Median share of damage repaired per arm, with intervals.",
        **_about(records, item),
    )
