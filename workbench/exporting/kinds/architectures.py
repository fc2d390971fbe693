"""Figures of an evolution over the training of several models: which of their shared latents come first where."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from sae.errors import MissingError
from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.kinds.evolution import STEP, drawable, step_ticks
from workbench.exporting.references import of_models
from workbench.markup.names import model_name
from workbench.results.evolution import Evolution
from workbench.workspace import Item, Workspace

MEASURES = {
    "own": "the model's own firings",
    "norm": "the decoder norm",
    "explained": "the variance it explains",
}
PARTS = ("told by the token", "between", "open given the token")  # thirds of the shared latents, by 1 - v_token
LAG = "later, doublings of the step"
RESAMPLES = 500


class ArchitectureOptions(StrictConfig):
    """Options of ``evolution_architectures``: by which of a latent's curves it emerges."""

    measure: Literal["own", "norm", "explained"] = Field(
        "own", description="a latent emerges by the model's own firings, its decoder norm, or the variance explained"
    )


def models_of(e: Evolution, item_id: str) -> list[dict[str, Any]]:
    """The models of an evolution over several trainings: model, hook, sources, steps.

    Raises:
        MissingError: it is of one model.
    """
    found: list[dict[str, Any]] | None = e.metadata.get("architectures")
    if not found or e.architectures is None:
        raise MissingError(
            f"{item_id} follows one model. `workbench evolve mini-architectures` follows several on the same text."
        )
    return found


def emergence_by_latent(e: Evolution, measure: str) -> pd.DataFrame:
    """Shared latents with ``open``, ``part`` (third by it) and the step at which each model has them, by model."""
    table = e.architectures
    assert table is not None
    shared = table[table["shared"]]
    steps = shared.pivot(index="latent", columns="model", values=f"emergence_{measure}")
    left = shared.groupby("latent")["open"].first().loc[steps.index]
    rank = np.argsort(np.argsort(left.to_numpy(), kind="stable"), kind="stable")
    part = np.array(PARTS)[3 * rank // max(1, len(rank))] if len(rank) else np.array([], dtype=str)
    return steps.assign(open=left, part=part).reset_index()


def lags(frame: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Mean lag of every later model behind every earlier one by part, with a bootstrap interval over latents."""
    rng, rows = np.random.default_rng(0), []
    for first, second in combinations(models, 2):
        lag = np.log2(frame[second].to_numpy(np.float64)) - np.log2(frame[first].to_numpy(np.float64))
        for name in PARTS:
            x = lag[(frame["part"] == name).to_numpy() & np.isfinite(lag)]
            draws = x[rng.integers(0, len(x), (RESAMPLES, len(x)))].mean(1) if len(x) > 1 else np.array([])
            low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
            pair = f"{model_name(second)} behind {model_name(first)}"
            mean = float(x.mean()) if len(x) else np.nan
            rows.append({"pair": pair, "part": name, "lag": mean, "low": low, "high": high, "n": len(x)})
    return pd.DataFrame(rows)


def _emerged(frame: pd.DataFrame, models: list[dict[str, Any]]) -> pd.DataFrame:
    """Share of the first and the last third that has emerged by each snapshot of each model."""
    rows = []
    for m in models:
        for name in (PARTS[0], PARTS[-1]):
            born = frame.loc[frame["part"] == name, m["model"]].to_numpy(np.float64)
            for step, x in zip(m["steps"], drawable(m["steps"]), strict=True):
                share = float((born <= x).mean()) if len(born) else np.nan
                series = f"{model_name(m['model'])}, {name}"
                rows.append({"step": x, "share": share, "series": series, "training_step": step, "n": len(born)})
    return pd.DataFrame(rows)


@figure("evolution_architectures", source="evolution", options=ArchitectureOptions)
def evolution_architectures(workspace: Workspace, item: Item, options: ArchitectureOptions) -> FigureData:
    """When latents that several models share emerge in each, by how much of them the token tells."""
    e = Evolution.open(item.path)
    models = models_of(e, item.id)
    names = [str(m["model"]) for m in models]
    frame = emergence_by_latent(e, options.measure)
    by = "" if options.measure == "own" else f"&by={options.measure}"
    curve, behind = _emerged(frame, models), lags(frame, names)
    steps = np.unique(np.concatenate([m["steps"] for m in models]))
    said = "; ".join(
        f"{r['pair']}: {r['lag']:+.2f} doublings where the token tells, {t['lag']:+.2f} where it leaves open"
        for (_, r), (_, t) in zip(
            behind[behind["part"] == PARTS[0]].iterrows(), behind[behind["part"] == PARTS[-1]].iterrows(), strict=True
        )
    )
    return FigureData(
        panels=[
            Panel(
                "line",
                curve,
                x="step",
                y="share",
                series="series",
                log_x=True,
                x_label=STEP,
                x_ticks=step_ticks(steps),
                y_label="share emerged",
                title="emerged by step",
                y_range=(0.0, 1.05),
            ),
            Panel(
                "points",
                behind,
                x="part",
                y="lag",
                low="low",
                high="high",
                series="pair" if behind["pair"].nunique() > 1 else None,
                y_label=LAG,
                title=f"{behind['pair'].iloc[0]}" if behind["pair"].nunique() == 1 else "each pair of models",
            ),
        ],
        caption=(
            f"Latents of one crosscoder that {' and '.join(model_name(n) for n in names)} share, by the step at which"
            f" {MEASURES[options.measure]} first reaches half of its largest value in each model; thirds by how much of"
            f" a latent's code the current token explains. Mean lags, 95 % bootstrap over latents: {said}."
            " All models read the same text; each is one training run."
        ),
        table=behind,
        n={"shared latents": len(frame), "latents": len(e)},
        columns={"low": "95 % from", "high": "to", "part": "latents"},
        alt=f"Share of shared latents emerged over training steps in each model, and lags by part. {said}.",
        inputs=[item],
        references=("evolution", "universality", "crosscoders", *of_models(names)),
        permalink=f"training?ev={item.id}{by}&evv={item.version}",
    )
