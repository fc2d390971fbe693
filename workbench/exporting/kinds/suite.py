"""The figure of a whole suite: every dictionary of a store, by site, layer and width (Llama Scope, arXiv 2410.20526,
figure 10).
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import Field

from sae.errors import MissingError
from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.workspace import Item, Workspace

METRICS = {"ev": "explained variance", "l0": "L0 (latents per token)", "delta_ce": "delta LM loss (nats)"}
PANELS = {
    "ev": METRICS["ev"],
    "delta_ce": METRICS["delta_ce"],
    "dead_share": "dead latents (share)",
}  # L0 is in the table: a Top-K's is k


class SuiteOptions(StrictConfig):
    """Options of ``suite_summary``. ``model``: only dictionaries of this one, as the store's source names it."""

    model: str = Field(default="", max_length=200, description="dictionaries of this model only; empty = all")


@figure("suite_summary", source="stores", options=SuiteOptions)
def suite_summary(workspace: Workspace, item: Item, options: SuiteOptions) -> FigureData:
    """Explained variance, L0 and delta LM loss of all dictionaries of a store, by site, layer and width."""
    rows, inputs = [], [item]
    for dictionary in workspace.items("dictionaries"):
        about = dictionary.manifest.metadata
        if about.get("store") != item.id or (options.model and about.get("source") != options.model):
            continue
        if workspace.complete("evaluations", dictionary.id):
            evaluation = workspace.get("evaluations", dictionary.id)
            rows.append(_row(dictionary, evaluation))
            inputs.append(evaluation)
    if not rows:
        raise MissingError(
            f"no dictionary of store {item.id!r} has been evaluated. `workbench evaluate DICTIONARY` does it."
        )
    table = pd.DataFrame(rows).sort_values(["model", "site", "width", "layer", "dictionary"], ignore_index=True)
    many = table["model"].nunique() > 1
    table["series"] = [
        f"{m} {s} {w}x" if many else f"{s} {w}x"
        for m, s, w in zip(table["model"], table["site"], table["width"], strict=True)
    ]
    panels = [
        Panel(
            "heat",
            _long(table, m),
            x="layer",
            y="series",
            value="value",
            x_label="layer",
            y_label=" ",
            value_label=label,
            title=label,
        )
        for m, label in PANELS.items()
    ]
    shown = table[["dictionary", "ev", "l0", "delta_ce", "dead_share"]]
    return FigureData(
        panels=panels,
        caption=(
            f"All dictionaries trained on {item.id}: {', '.join(PANELS.values())} on held-out text; the table adds L0."
        ),
        table=shown,
        n={"dictionaries": len(table), "tokens": int(table["n"].min())},
        inputs=inputs,
        references=("topk", *of_models(sorted(set(table["model"])))),
        alt=f"Three heat maps, layers across and one row per site and width, over {len(table)} dictionaries.",
        columns={"ev": "EV", "l0": "L0", "delta_ce": "delta LM loss", "dead_share": "dead"},
    )


def _row(dictionary: Item, evaluation: Item) -> dict[str, Any]:
    """One dictionary's numbers with their intervals."""
    about, numbers = dictionary.manifest.metadata, evaluation.manifest.numbers
    from workbench.models.sites import parse_site  # how models are loaded comes with it

    layer, kind = parse_site(str(about["site"]))
    size = dictionary.manifest.numbers
    row: dict[str, Any] = {"dictionary": dictionary.id, "model": str(about["source"]), "site": kind, "layer": layer}
    row |= {
        "width": int(size["d_sae"]) // int(size["d_in"]),
        "n": numbers["ev"]["n"],
        "dead_share": numbers["dead_share"]["value"],
    }
    for metric in METRICS:
        row |= {
            metric: numbers[metric]["value"],
            f"{metric}_low": numbers[metric]["low"],
            f"{metric}_high": numbers[metric]["high"],
        }
    return row


def _long(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of one panel."""
    return table[["dictionary", "series", "layer", metric]].rename(columns={metric: "value"})
