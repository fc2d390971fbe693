"""Curves behind single claims, from the table each leaves beside its finding: figure ``claim_curve``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sae.errors import MissingError
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
        "partners": "same frequency and kind, 97.5 %",
        "snapshots": "shuffled snapshots, 97.5 %",
    }
    return over_units(bins, "what", "activity", names)


CURVES: dict[str, Curve] = {
    "evolution.trajectories-of-the-model": Curve(
        _trajectories,
        "correlation of activity with the best partner in another crosscoder seed",
        "correlation of trajectories",
        "How alike trajectories are, by how alike two latents of two crosscoder seeds are in activity.",
        dashed=("same frequency and kind, 97.5 %", "shuffled snapshots, 97.5 %"),
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
            " draw."
        )
    curve = CURVES[item.id]
    frame = curve.read(pd.read_parquet(path))
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
