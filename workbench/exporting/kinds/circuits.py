"""Figures of circuit analyses (``circuits/``): effects by layer and offset, convolution taps, and the strongest single
effects.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import Field

from sae.errors import MissingError, UsageError
from sae.strict import StrictConfig, nearest
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.markup.names import model_name
from workbench.results.circuits import CircuitResult
from workbench.workspace import Item, Workspace

OWN = {
    "transformer": "read_profile",
    "mamba": "write_profile",
    "hybrid": "write_profile",
}  # architecture -> its profile over offsets
ONTO_ANSWER = ("head_to_logit", "state_to_logit", "y_to_logit", "activation", "attribution")
NAMES = {
    "read_profile": "What each head reads, by offset",
    "write_profile": "Where the state is written, by offset",
    "conv_profile": "Convolution taps behind the write",
    "head_to_logit": "Heads to the answer",
    "state_to_logit": "States to the answer",
    "y_to_logit": "Mixer outputs to the answer",
    "head_to_head": "Heads to heads",
    "activation": "Activation patching",
    "attribution": "All of them, to first order",
    "ablation": "Ablations",
}


class MetricOptions(StrictConfig):
    """Which metric's change is shown."""

    metric: str = Field("logit_diff", description="which metric's change is shown")


class ProfileOptions(MetricOptions):
    """Options of ``circuit_profile``; without an analysis, the architecture's own profile is shown.

    ``scale`` is the effect of the strongest colour, for several figures on one scale; 0 takes the figure's own largest.
    """

    analysis: str = Field("", description="which analysis; default: the architecture's own profile")
    rows: int = Field(default=14, ge=1, le=64, description="places shown at most")
    scale: float = Field(
        default=0.0,
        ge=0,
        description="effect of the strongest colour, for several figures on one scale; 0 = the figure's own largest",
    )


class EffectOptions(MetricOptions):
    """Options of ``circuit_effects``; without an analysis, the one onto the answer's logits is shown.

    ``n`` places at most.
    """

    analysis: str = Field("", description="which analysis; default: onto the answer's logits")
    n: int = Field(default=12, ge=1, le=100, description="places shown at most")


def run_words(item: Item) -> str:
    """``mini-pythia on the induction task``."""
    about = item.manifest.metadata
    model = model_name(str(about.get("model") or item.id))
    revision = f" at {about['revision']}" if about.get("revision") else ""
    return f"{model}{revision} on the {about.get('task', 'induction')} task"


def metric_name(metric: str) -> str:
    """A metric in words, with its unit where it has one."""
    return {"logit_diff": "logit difference"}.get(metric, metric.replace("_", " "))


def _select(
    result: CircuitResult, analysis: str, metric: str, prefer: tuple[str, ...], item: Item
) -> tuple[pd.DataFrame, str]:
    known = sorted(result.effects["analysis"].unique())
    chosen = analysis or next((p for p in prefer if p in known), "")
    if chosen not in known:
        raise UsageError(
            f"analysis {analysis or prefer[0]!r} is not in {item.id} ({nearest(analysis or prefer[0], known)})"
        )
    metrics = sorted(result.effects["metric"].unique())
    if metric not in metrics:
        raise UsageError(f"metric {metric!r} is not in {item.id} ({nearest(metric, metrics)})")
    return result.select(analysis=chosen, metric=metric), chosen


def _by_offset(result: CircuitResult, analysis: str, metric: str, item: Item) -> pd.DataFrame:
    """Effects that have an offset, as whole numbers; at least one."""
    found, chosen = _select(result, analysis, metric, (), item)
    found = found[found["offset"].notna()]
    if found.empty:
        raise MissingError(f"{item.id}: {chosen} was not computed by offset. Run `workbench circuits` again.")
    return found.assign(offset=found["offset"].astype(int))


def _own(result: CircuitResult) -> str:
    about = result.manifest.metadata
    return OWN.get(str(about.get("architecture")), "read_profile")


def _rows(effects: pd.DataFrame) -> pd.Series:
    """``L1H3`` for heads, ``L1`` for whole layers."""
    return "L" + effects["layer"].astype(str) + effects["unit"].map(lambda u: f"H{u}" if u >= 0 else "")


def _places(effects: pd.DataFrame) -> pd.Series:
    """:func:`_rows`, with what else tells the effects apart."""
    names = _rows(effects)
    for column in [c for c in ("receiver", "site", "position", "source") if effects[c].nunique() > 1]:
        arrow = " → " if column == "receiver" else " "
        names = names + effects[column].map(lambda v, arrow=arrow: f"{arrow}{v}" if v else "")
    return names


def _strongest(frame: pd.DataFrame, column: str, most: int) -> list[str]:
    """The values of ``column`` with the largest effects, largest first."""
    return frame.groupby(column, sort=False)["effect"].apply(lambda e: e.abs().max()).nlargest(most).index.tolist()


def _about(result: CircuitResult, item: Item) -> dict[str, Any]:
    about = result.manifest.metadata
    key = "mb" if about.get("architecture") in ("mamba", "hybrid") else "tf"
    return {
        "inputs": [item],
        "references": ("universality", *of_models([str(about.get("model", ""))])),
        "permalink": f"induction?task={about.get('task', 'induction')}&{key}={item.id}&{key}v={item.version}",
    }


def _n(result: CircuitResult, effects: pd.DataFrame) -> dict[str, Any]:
    return {"prompts": int(effects["n"].max()) if len(effects) else int(result.manifest.metadata.get("n_prompts", 0))}


def offset_ticks(offsets: pd.Series) -> tuple[tuple[float, str], ...]:
    """Columns of a matrix by offset, with their sign: ``-1``, ``0``, ``+1``."""
    low, high = int(offsets.min()), int(offsets.max())
    every = max(1, -(-(high - low + 1) // 16))
    return tuple((float(v - low), f"{v:+d}" if v else "0") for v in range(low, high + 1, every))


def _focus(result: CircuitResult) -> str:
    return str(result.manifest.metadata.get("focus", "focus"))


def _profile(result: CircuitResult, analysis: str, metric: str, item: Item) -> pd.DataFrame:
    """``row, offset, effect, low, high, n`` by layer or head and offset."""
    found = _by_offset(result, analysis or _own(result), metric, item)
    found = found.assign(row=_rows(found)).sort_values(["layer", "unit", "offset"])
    return (
        found[["row", "offset", "effect", "low", "high", "n"]].drop_duplicates(["row", "offset"]).reset_index(drop=True)
    )


@figure("circuit_profile", source="circuits", options=ProfileOptions)
def circuit_profile(workspace: Workspace, item: Item, options: ProfileOptions) -> FigureData:
    """Effects by layer or head and by offset from the focus token."""
    result = CircuitResult.open(item.path)
    analysis = options.analysis or _own(result)
    frame = _profile(result, analysis, options.metric, item)
    frame = frame[frame["row"].isin(_strongest(frame, "row", options.rows))].reset_index(drop=True)
    peak = frame.loc[frame["effect"].abs().idxmax()]
    offset = int(peak["offset"])
    at = f"{offset:+d}" if offset else "0"
    said = f" The largest effect, {peak['effect']:.2f}, is at {peak['row']}, offset {at}."
    wide = frame.pivot(index="row", columns="offset", values="effect").reindex(list(dict.fromkeys(frame["row"])))
    wide.columns = [f"{int(c):+d}" for c in wide.columns]
    what = f"change of {metric_name(options.metric)}"
    focus = _focus(result)
    panel = Panel(
        "heat",
        frame,
        x="offset",
        y="row",
        value="effect",
        diverging=True,
        z_range=(-options.scale, options.scale) if options.scale else None,
        x_ticks=offset_ticks(frame["offset"]),
        x_label=f"token offset from {focus}",
        y_label="head" if (frame["row"].str.contains("H")).any() else "layer",
        value_label=what,
    )
    return FigureData(
        panels=[panel],
        caption=f"{NAMES.get(analysis, analysis)}, in {run_words(item)}: {what} by offset from {focus}.{said}",
        table=wide.reset_index(),
        n=_n(result, frame),
        columns={"row": "place"},
        alt=f"Heat map of effects by place and offset.{said}",
        **_about(result, item),
    )


@figure("circuit_curve", source="circuits", options=MetricOptions)
def circuit_curve(workspace: Workspace, item: Item, options: MetricOptions) -> FigureData:
    """The strongest row of the profile by offset, with its interval."""
    result = CircuitResult.open(item.path)
    frame = _profile(result, "", options.metric, item)
    row = str(frame.loc[frame["effect"].abs().idxmax(), "row"])
    frame = frame[frame["row"] == row].reset_index(drop=True)
    what = f"change of {metric_name(options.metric)}"
    panel = Panel(
        "line",
        frame,
        "offset",
        "effect",
        low="low",
        high="high",
        x_label=f"token offset from {_focus(result)}",
        y_label=f"Δ {metric_name(options.metric)}, {row}",
    )
    return FigureData(
        panels=[panel],
        caption=(
            f"{what[0].upper()}{what[1:]} through {row} of {run_words(item)} by offset from {_focus(result)}; the"
            " band is a 95"
            " % interval over prompts."
        ),
        table=frame.drop(columns="row"),
        n=_n(result, frame),
        columns={"low": "95 % from", "high": "to"},
        alt=f"Curve of the effect through {row} by offset.",
        **_about(result, item),
    )


@figure("circuit_taps", source="circuits", options=MetricOptions)
def circuit_taps(workspace: Workspace, item: Item, options: MetricOptions) -> FigureData:
    """Mamba: effects by offset and convolution tap, in the layer that writes most."""
    result = CircuitResult.open(item.path)
    if not (result.effects["analysis"] == "conv_profile").any():
        raise UsageError(
            f"{item.id} has no convolution taps (analysis 'conv_profile'), which belong to a Mamba. Choose a result of"
            " one."
        )
    found = _by_offset(result, "conv_profile", options.metric, item)
    layer = int(found.loc[found["effect"].abs().idxmax(), "layer"])
    found = found[found["layer"] == layer].sort_values(["tap", "offset"])
    frame = found.assign(back=[f"{t} back" for t in found["tap"]])[
        ["back", "offset", "effect", "low", "high", "n"]
    ].reset_index(drop=True)
    wide = frame.pivot(index="back", columns="offset", values="effect")
    wide.columns = [f"{int(c):+d}" for c in wide.columns]
    what = f"change of {metric_name(options.metric)}"
    panel = Panel(
        "heat",
        frame,
        "offset",
        "back",
        value="effect",
        diverging=True,
        x_ticks=offset_ticks(frame["offset"]),
        x_label=f"written at offset from {_focus(result)} (layer {layer})",
        y_label="convolution tap",
        value_label=what,
    )
    return FigureData(
        panels=[panel],
        caption=(
            f"Convolution taps behind the write of layer {layer} of {run_words(item)}: {what} by offset of the write"
            " from"
            f" {_focus(result)}."
        ),
        table=wide.reset_index(),
        n=_n(result, frame),
        columns={"back": "tap"},
        alt=f"Heat map of effects by convolution tap and offset in layer {layer}.",
        **_about(result, item),
    )


@figure("circuit_effects", source="circuits", options=EffectOptions)
def circuit_effects(workspace: Workspace, item: Item, options: EffectOptions) -> FigureData:
    """The strongest single effects, with intervals."""
    result = CircuitResult.open(item.path)
    found, analysis = _select(result, options.analysis, options.metric, ONTO_ANSWER, item)
    found = found.assign(place=_places(found))
    order = {name: j for j, name in enumerate(_strongest(found, "place", options.n))}
    found = found[found["place"].isin(order)].sort_values("place", key=lambda s: s.map(order), kind="stable")
    frame = (
        found[["place", "path", "effect", "low", "high", "n"]].drop_duplicates(["place", "path"]).reset_index(drop=True)
    )
    what = f"change of {metric_name(options.metric)}"
    panel = Panel(
        "points",
        frame,
        x="place",
        y="effect",
        low="low",
        high="high",
        series="path" if frame["path"].nunique() > 1 else None,
        y_label=what,
    )
    return FigureData(
        panels=[panel],
        caption=(
            f"{NAMES.get(analysis, analysis)}, in {run_words(item)}: the strongest effects, {what} with 95 %"
            " intervals over"
            " prompts."
        ),
        table=frame,
        n=_n(result, frame),
        columns={"low": "95 % from", "high": "to"},
        alt=f"The {frame['place'].nunique()} strongest effects as points with intervals.",
        **_about(result, item),
    )
