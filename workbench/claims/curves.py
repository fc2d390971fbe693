"""Curves behind single claims, from the table each leaves beside its finding: figure ``claim_curve``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sae.errors import CorruptError, MissingError
from sae.strict import StrictConfig
from workbench.claims.figures import REFERENCE, read_claim
from workbench.claims.measured import Measured
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.workspace import Item, Workspace


class CurveOptions(StrictConfig):
    """A curve has no options."""


@dataclass(frozen=True)
class Curve:
    """How a claim's table becomes a curve: ``read`` gives columns ``x, series, value, low, high, n``."""

    read: Callable[[pd.DataFrame], pd.DataFrame]
    x_label: str
    y_label: str
    says: str  # what the picture shows, a sentence
    dashed: tuple[str, ...] = ()
    log_x: bool = False


def over_units(table: pd.DataFrame, group: str, x: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """One point per group and column, over the units (rows) of the group: mean and Student's t interval; ``columns``
    maps a column to its name in the picture.
    """
    rows: list[dict[str, Any]] = []
    for _, part in table.groupby(group, sort=False):
        for column, name in columns.items():
            m = Measured.of(part[column])
            rows.append(
                {"x": float(part[x].mean()), "series": name, "value": m.value, "low": m.low, "high": m.high, "n": m.n}
            )
    out = pd.DataFrame(rows, columns=["x", "series", "value", "low", "high", "n"]).sort_values(["series", "x"])
    return out.astype({"value": float, "low": float, "high": float}).reset_index(drop=True)


def _trajectories(table: pd.DataFrame) -> pd.DataFrame:
    bins = table[table["what"].str.startswith("activity from")]
    names = {
        "trajectories": "matched",
        "partners": "same frequency, kind",
        "snapshots": "shuffled snapshots",
    }
    return over_units(bins, "what", "activity", names)


def _effects(table: pd.DataFrame) -> pd.DataFrame:
    """Likeness of effects by likeness of activity, raw and given the token: means per (layer, seed) in bins."""
    frames = []
    for column, name in (("given_token", "given the token"), ("raw", "raw")):
        bins = pd.cut(table[column], EFFECT_BINS)
        units = (
            table.groupby([bins, "layer", "seed"], observed=True)[[column, "effects", "control"]]
            .mean()
            .reset_index(names=["bin", "layer", "seed"])
        )
        columns = {"effects": f"partner, r {name}", "control": f"same places, r {name}"}
        frames.append(over_units(units.dropna(), "bin", column, columns))
    return pd.concat(frames, ignore_index=True)


def _relays(table: pd.DataFrame) -> pd.DataFrame:
    names = {
        "at_plus_one": "at +1",
        "moved": "+2: taps 1, 2 exchanged",
        "idle": "+2: taps 2, 3 exchanged",
        "early": "other layer, +1: taps 1, 2",
    }
    return over_units(table, "step", "step", {c: n for c, n in names.items() if c in table})


def _training(table: pd.DataFrame) -> pd.DataFrame:
    last = table.groupby("seed")["above"].transform("last")
    start = table.groupby("seed")["above"].transform("first")
    copying = {c: c.replace("copying ", "copying: ") for c in table if c.startswith("copying ")}
    shown = table.assign(
        rise=(table["above"] - start) / (last - start),
        step=(table["transformer"] * table["mamba"]).pow(0.5).clip(lower=8),
    )
    once = shown[shown["seed"] == shown["seed"].iloc[0]]  # the models' own accuracy has no seed of a dictionary
    parts = [over_units(shown, "pair", "step", {"rise": "similarity"}), over_units(once, "pair", "step", copying)]
    return pd.concat(parts, ignore_index=True)


EFFECT_BINS = (-0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
CURVES: dict[str, Curve] = {
    "evolution.trajectories-of-the-model": Curve(
        _trajectories,
        "correlation of activity",
        "correlation of trajectories",
        "How alike trajectories are, by how alike a latent and its best partner in another crosscoder seed are"
        " in activity; of both nulls the line is what 97.5 % stay below.",
        dashed=("same frequency, kind", "shuffled snapshots"),
    ),
    "universality.similar-latents-same-effects": Curve(
        _effects,
        "correlation of activity",
        "correlation of effects",
        "How alike the effects of two architectures' latents are, by how alike they are in activity, raw and"
        " given the token.",
        dashed=("same places, r given the token", "same places, r raw"),
    ),
    "universality.offset-follows-the-tap": Curve(
        _relays,
        "training step",
        "share of the layer's own write profile",
        "Where the Mamba's layers write at snapshots that copy, and where once taps are exchanged.",
        dashed=("+2: taps 2, 3 exchanged", "other layer, +1: taps 1, 2"),
        log_x=True,
    ),
    "universality.similarity-comes-with-copying": Curve(
        _training,
        "training step",
        "share of the rise, or accuracy",
        "When the similarity of two architectures given the token arises, beside each model's accuracy of"
        " copying; steps are means of both models', step 0 stands at 8.",
        dashed=("copying: mini-mamba", "copying: mini-pythia"),
        log_x=True,
    ),
}


@figure("claim_curve", source="claims", options=CurveOptions)
def claim_curve(workspace: Workspace, item: Item, options: CurveOptions) -> FigureData:
    """The curve behind one claim."""
    document = read_claim(item)
    if item.id not in CURVES:
        raise MissingError(f"{item.id} has no curve; those that have are {', '.join(CURVES)}. Use figure 'claim'.")
    path = item.path / "table.parquet"
    if not path.is_file():
        raise MissingError(
            f"{item.id}: nothing was measured ({document.get('note') or document['verdict']}), so there is nothing to"
            " draw. `workbench reproduce` measures it where what it needs is at hand."
        )
    curve = CURVES[item.id]
    try:
        frame = curve.read(pd.read_parquet(path))
    except KeyError as e:
        raise CorruptError(
            f"{path} lacks the column {e}. Run `workbench reproduce --only {item.id} --replace` again."
        ) from e
    if frame.empty:
        raise MissingError(f"{item.id}: its table has no point of the curve ({document.get('note')}).")
    return FigureData(
        panels=[
            Panel(
                "line",
                frame,
                x="x",
                y="value",
                series="series",
                low="low",
                high="high",
                x_label=curve.x_label,
                y_label=curve.y_label,
                log_x=curve.log_x,
                dashed=curve.dashed,
            )
        ],
        caption=(
            f"{curve.says} {document['statement']} Verdict: {document['verdict']}. Bands are 95 % intervals over"
            f" units ({document.get('unit', '')})."
        ),
        table=frame,
        n={"observations": int(document["n"])},
        inputs=[item],
        references=tuple(r for r in (REFERENCE.get(document["paper"]),) if r),
        permalink=f"results?c={item.id}&cv={item.version}",
        alt=f"{curve.y_label} over {curve.x_label}, {frame['series'].nunique()} series.",
    )
