"""Figures of a map (``maps/``): decoder directions in the plane, and how close neighbours are beside chance."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from sae.errors import CorruptError, MissingError
from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.markup.names import dictionary_words
from workbench.results.records import LatentRecords
from workbench.workspace import Item, Workspace


class MapOptions(StrictConfig):
    """Options of ``decoder_map``: points drawn, at most, and what colours them."""

    points: int = Field(default=3000, ge=100, le=100_000, description="points drawn at most, a sample of all")
    colour: Literal["dictionary", "density", "max"] = Field("density", description="what colours a point")


def read_table(item: Item, name: str) -> pd.DataFrame | None:
    """A table of a map, or None where it was not computed.

    Raises:
        CorruptError: it is there and cannot be read.
    """
    path = item.path / f"{name}.parquet"
    if not path.is_file():
        return None
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as e:
        raise CorruptError(f"{path} cannot be read ({e}). Run `workbench map` again.") from e


def nearest_panel(frame: pd.DataFrame) -> Panel:
    """Shares of nearest cosines of each dictionary, and of random directions (dashed)."""
    one = frame["dictionary"].nunique() == 1
    names = frame["series"] if one else frame["dictionary"] + " " + frame["series"]
    long = pd.DataFrame({"cosine": frame["left"], "share": frame["count"] / frame["n"], "series": names})
    used = long[long["share"] > 0]["cosine"]
    long = long[(long["cosine"] >= used.min() - 0.05) & (long["cosine"] <= used.max() + 0.05)]
    return Panel(
        "step",
        long.reset_index(drop=True),
        "cosine",
        "share",
        series="series",
        x_label="cosine with the nearest other direction",
        y_label="share",
        title="nearest neighbours",
        dashed=tuple(s for s in long["series"].unique() if not s.endswith("decoder")),
    )


COLOURED = {"density": "log10 of the share of tokens it fires on", "max": "largest activation"}


def layout_panel(workspace: Workspace, points: pd.DataFrame, options: MapOptions) -> Panel:
    """The layout, coloured by dictionary, or by what the latents' records know of them; a sample of the points where
    there are more than asked for.
    """
    drawn = points if len(points) <= options.points else points.sample(options.points, random_state=0)
    drawn = drawn[["dictionary", "latent", "x", "y"]].reset_index(drop=True)
    values = None if options.colour == "dictionary" else _known(workspace, drawn, options.colour)
    return Panel(
        "scatter",
        drawn if values is None else drawn.assign(value=values),
        "x",
        "y",
        series="dictionary",
        value=None if values is None else "value",
        value_label=COLOURED.get(options.colour, ""),
        title="layout",
        backdrop=points[["x", "y"]] if len(drawn) < len(points) else None,
    )


def _known(workspace: Workspace, drawn: pd.DataFrame, column: str) -> np.ndarray | None:
    """A number of every latent from its records, missing where there are none; None where no dictionary has any."""
    out = np.full(len(drawn), np.nan)
    for name, part in drawn.groupby("dictionary", sort=False):
        if workspace.complete("latents", str(name)):
            table = LatentRecords.open(workspace.get("latents", str(name)).path).table
            if column in table:
                found = table.set_index("latent")[column].reindex(part["latent"]).to_numpy(np.float64)
                out[part.index] = np.log10(np.where(found > 0, found, np.nan)) if column == "density" else found
    return out if np.isfinite(out).any() else None


@figure("decoder_map", source="maps", options=MapOptions)
def decoder_map(workspace: Workspace, item: Item, options: MapOptions) -> FigureData:
    """Decoder directions in the plane, and their nearest neighbours beside chance."""
    points, nearest = read_table(item, "points"), read_table(item, "nearest_hist")
    panels = []
    if points is not None:
        panels.append(layout_panel(workspace, points, options))
    if nearest is not None:
        panels.append(nearest_panel(nearest))
    if not panels:
        raise MissingError(f"{item.id} holds neither a layout nor neighbours. Run `workbench map` again.")
    rows = [
        {"dictionary": k, **v}
        for k, v in item.manifest.numbers.items()
        if isinstance(v, dict) and "median_nearest_cosine" in v
    ]
    table = (
        pd.DataFrame(rows)
        if rows
        else pd.DataFrame({"panel": [p.title for p in panels], "rows": [len(p.frame) for p in panels]})
    )
    by_value = points is not None and panels[0].value is not None
    coloured = f" (colour: {COLOURED[options.colour]})" if by_value else ""
    names = [str(r["dictionary"]) for r in rows] or ([] if points is None else points["dictionary"].unique().tolist())
    return FigureData(
        panels=panels,
        caption=(
            f"Decoder directions of {', '.join(map(dictionary_words, names)) or item.id} in the plane, where neighbours"
            f" lie together{coloured}, and the cosine of nearest neighbours beside that of random directions."
        ),
        table=table,
        n={"latents": int(sum(r.get("n_latents", 0) for r in rows)) or (0 if points is None else len(points))},
        inputs=[item],
        references=of_models(names),
        permalink=f"map?map={item.id}&mapv={item.version}",
        alt="Points of decoder directions, and a histogram of nearest cosines beside chance.",
    )
