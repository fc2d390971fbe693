"""Figures of a map (``maps/``): decoder directions in the plane, and how close neighbours are beside chance."""

from __future__ import annotations

import pandas as pd
from pydantic import Field

from sae.errors import CorruptError, MissingError
from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.workspace import Item, Workspace


class MapOptions(StrictConfig):
    """Options of ``decoder_map``: points drawn per dictionary, at most."""

    points: int = Field(default=3000, ge=100, le=100_000)


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


@figure("decoder_map", source="maps", options=MapOptions)
def decoder_map(workspace: Workspace, item: Item, options: MapOptions) -> FigureData:
    """Decoder directions in the plane, and their nearest neighbours beside chance."""
    points, nearest = read_table(item, "points"), read_table(item, "nearest_hist")
    panels = []
    if points is not None:
        drawn = (
            points.groupby("dictionary", sort=False)
            .head(options.points)[["dictionary", "latent", "x", "y"]]
            .reset_index(drop=True)
        )
        panels.append(Panel("scatter", drawn, "x", "y", series="dictionary", title="layout"))
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
    names = [str(r["dictionary"]) for r in rows] or ([] if points is None else points["dictionary"].unique().tolist())
    return FigureData(
        panels=panels,
        caption=(
            f"Decoder directions of {', '.join(names) or item.id} in the plane, where neighbours lie together, and the"
            " cosine of nearest neighbours beside that of random directions."
        ),
        table=table,
        n={"latents": int(sum(r.get("n_latents", 0) for r in rows)) or (0 if points is None else len(points))},
        inputs=[item],
        references=of_models(names),
        permalink=f"map?map={item.id}&mapv={item.version}",
        alt="Points of decoder directions, and a histogram of nearest cosines beside chance.",
    )
