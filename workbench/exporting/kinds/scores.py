"""Figure of the scores of explanations (``scores/``): scorers side by side, each beside chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from sae.errors import MissingError
from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.markup.text import visible
from workbench.results.scores import SCORERS, ScoreRecords
from workbench.workspace import Item, Workspace

WEAK = "A score speaks of the label and of its judge: a judge that cannot read gives chance to every label."


class ScoresOptions(StrictConfig):
    """Options of ``explanation_scores``."""

    latent: int | None = Field(default=None, ge=0, description="one latent's scores; by default means over latents")


@figure("explanation_scores", source="scores", options=ScoresOptions)
def explanation_scores(workspace: Workspace, item: Item, options: ScoresOptions) -> FigureData:
    """Scores of labels side by side: detection, near misses, fuzzing, shared words, simulation."""
    records, one = ScoreRecords.open(item.path), options.latent
    about = records.metadata
    if one is None:
        table = records.summary.rename(columns={"mean": "score"})
        n = {"latents": int(table["n"].max()), "excerpts": int(table["excerpts"].sum())}
        said = "Means over latents, with 95 % bootstrap intervals over latents."
    else:
        table = records.of(one).rename(columns={"value": "score"})
        if table.empty:
            raise MissingError(
                f"latent {one} of {about['dictionary']} was not scored in {item.id}. Choose one that was, or run"
                " `workbench score` with it."
            )
        n = {"excerpts": int((table["n_positive"] + table["n_negative"]).max())}
        said = f"Latent #{one}, with 95 % intervals over excerpts."
    table = table.assign(
        scorer=[SCORERS[s].name for s in table["scorer"]], unit=[SCORERS[s].unit for s in table["scorer"]]
    )
    measured = table.dropna(subset=["score"])
    scores = measured[["scorer", "score", "low", "high"]].assign(series="score")
    chance = measured[["scorer", "chance"]].rename(columns={"chance": "score"})
    frame = pd.concat([scores, chance.assign(series="chance", low=np.nan, high=np.nan)], ignore_index=True)
    unread = int(table["unreadable"].sum())
    return FigureData(
        panels=[
            Panel(
                "points",
                frame,
                x="scorer",
                y="score",
                low="low",
                high="high",
                series="series",
                y_label="score",
                dashed=("chance",),
            )
        ],
        caption=(
            f"Scores of the labels of {about['dictionary']} by {visible(about['explainer'])}, judged by"
            f" {visible(about['judge'])}, on text the labels were not made from. {said} Simulation is a correlation,"
            " shared words an area under the ROC curve, the others balanced accuracies."
            f"{f' {unread:,} excerpts had no readable answer and are left out.' if unread else ''} {WEAK}"
        ),
        table=table,
        n=n,
        inputs=[item],
        references=of_models([str(about["dictionary"])]),
        permalink=_link(
            workspace, str(about["dictionary"]), one if one is not None else int(records.table["latent"].min())
        ),
        alt=f"Points for {len(measured)} scorers, each beside its chance level.",
    )


def _link(workspace: Workspace, dictionary: str, latent: int) -> str:
    """The latent's page, with the data version of its records where there are any."""
    where: dict[str, Any] = {"d": dictionary, "i": latent}
    if workspace.complete("latents", dictionary):
        where["v"] = workspace.get("latents", dictionary).version
    return "latent?" + "&".join(f"{k}={v}" for k, v in where.items())
