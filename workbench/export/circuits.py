"""Figures of circuit analyses (``circuits/``): effects by layer and offset, and the strongest single effects."""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import Field

from sae.errors import UsageError
from sae.strict import StrictConfig, nearest
from workbench.circuits import CircuitResult
from workbench.export.figures import FigureData, Panel, figure
from workbench.export.references import of_models
from workbench.workspace import Item, Workspace

PROFILES = ("write_profile", "read_profile", "conv_profile")


class ProfileOptions(StrictConfig):
    """Options of ``circuit_profile``; without an analysis, the architecture's own profile is shown."""

    analysis: str = ""
    metric: str = "logit_diff"
    rows: int = Field(default=14, ge=1, le=64)


class EffectOptions(StrictConfig):
    """Options of ``circuit_effects``; without an analysis, the one onto the answer's logits is shown."""

    analysis: str = ""
    metric: str = "logit_diff"
    n: int = Field(default=15, ge=1, le=100)


def _select(result: CircuitResult, analysis: str, metric: str, prefer: tuple[str, ...], item: Item) -> tuple[pd.DataFrame, str]:
    known = sorted(result.effects["analysis"].unique())
    chosen = analysis or next((p for p in prefer if p in known), "")
    if chosen not in known:
        raise UsageError(f"analysis {analysis or prefer[0]!r} is not in {item.id} ({nearest(analysis or prefer[0], known)})")
    metrics = sorted(result.effects["metric"].unique())
    if metric not in metrics:
        raise UsageError(f"metric {metric!r} is not in {item.id} ({nearest(metric, metrics)})")
    return result.select(analysis=chosen, metric=metric), chosen


def _unit(effects: pd.DataFrame) -> list[str]:
    """``L1H3`` for heads, ``L1`` for whole layers, with the receiver where there is one."""
    names = []
    for row in effects.to_dict("records"):
        name = f"L{int(row['layer'])}" + (f"H{int(row['unit'])}" if row["unit"] >= 0 else "")
        names.append(f"{name} → {row['receiver']}" if isinstance(row.get("receiver"), str) and row["receiver"] else name)
    return names


def _about(result: CircuitResult, item: Item) -> dict[str, Any]:
    about = result.manifest.metadata
    return {
        "inputs": [item],
        "references": ("universality", *of_models([str(about.get("model", ""))])),
        "permalink": f"circuits?c={item.id}&v={item.version}",
    }


def _n(result: CircuitResult, effects: pd.DataFrame) -> dict[str, Any]:
    return {"prompts": int(effects["n"].max()) if len(effects) else int(result.manifest.metadata.get("n_prompts", 0))}


@figure("circuit_profile", source="circuits", options=ProfileOptions)
def circuit_profile(workspace: Workspace, item: Item, options: ProfileOptions) -> FigureData:
    """Effects by layer or head and by offset from the focus token."""
    result = CircuitResult.open(item.path)
    effects, analysis = _select(result, options.analysis, options.metric, PROFILES, item)
    effects = effects[effects["offset"].notna()]
    effects = effects.assign(row=_unit(effects), offset=effects["offset"].astype(int)).sort_values(["layer", "unit", "offset"])
    strongest = effects.groupby("row", sort=False)["effect"].apply(lambda e: e.abs().max()).nlargest(options.rows).index
    frame = effects[effects["row"].isin(strongest)][["row", "offset", "effect", "low", "high", "n"]].drop_duplicates(["row", "offset"])
    frame = frame.reset_index(drop=True)
    peak = frame.loc[frame["effect"].abs().idxmax()] if len(frame) else None
    about = result.manifest.metadata
    focus = str(about.get("focus", "focus"))
    said = "" if peak is None else f" The largest effect, {peak['effect']:.2f}, is at {peak['row']}, offset {int(peak['offset']):+d}."
    wide = frame.pivot(index="row", columns="offset", values="effect").reindex(list(dict.fromkeys(frame["row"])))
    wide.columns = [f"{int(c):+d}" for c in wide.columns]
    metric = options.metric.replace("_", " ")
    return FigureData(
        panels=[
            Panel(
                "heat",
                frame,
                x="offset",
                y="row",
                value="effect",
                diverging=True,
                x_label=f"token offset from {focus}",
                y_label="place",
                value_label=f"change of {metric}",
            )
        ],
        caption=f"{analysis.replace('_', ' ').capitalize()} of {item.id}: change of {metric} by offset from {focus}.{said}",
        table=wide.reset_index(),
        n=_n(result, frame),
        columns={"row": "place"},
        alt=f"Heat map of effects by place and offset.{said}",
        **_about(result, item),
    )


@figure("circuit_effects", source="circuits", options=EffectOptions)
def circuit_effects(workspace: Workspace, item: Item, options: EffectOptions) -> FigureData:
    """The strongest single effects, with intervals."""
    result = CircuitResult.open(item.path)
    effects, analysis = _select(
        result, options.analysis, options.metric, ("head_to_logit", "state_to_logit", "y_to_logit", "activation"), item
    )
    effects = effects.assign(place=_unit(effects))
    detail = [c for c in ("position", "path", "source") if effects[c].nunique() > 1]
    for c in detail:
        effects["place"] += " " + effects[c].astype(str)
    effects = (
        effects.loc[effects["effect"].abs().sort_values(ascending=False, kind="stable").index].drop_duplicates("place").head(options.n)
    )
    frame = effects[["place", "effect", "low", "high", "n"]].reset_index(drop=True)
    metric = options.metric.replace("_", " ")
    return FigureData(
        panels=[Panel("points", frame, x="place", y="effect", low="low", high="high", y_label=f"change of {metric}")],
        caption=f"Strongest effects of {analysis.replace('_', ' ')} in {item.id}: change of {metric} with 95 % intervals over prompts.",
        table=frame,
        n=_n(result, frame),
        columns={"low": "95 % from", "high": "to"},
        alt=f"The {len(frame)} strongest effects as points with intervals.",
        **_about(result, item),
    )
