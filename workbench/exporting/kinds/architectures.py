"""Figures of an evolution over the training of several models: which of their shared latents come first where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from sae.errors import CorruptError, MissingError
from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.kinds.evolution import STEP, drawable, step_ticks
from workbench.exporting.references import of_models
from workbench.markup.names import listed, model_name
from workbench.results.evolution import Evolution
from workbench.results.lines import MIN_SHARED, lag, recorded_lines
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


def there_from_the_start(frame: pd.DataFrame, models: list[dict[str, Any]]) -> int:
    """How many shared latents every model has at its first snapshot, untrained in most recipes: they tell nothing of
    an order, and a median lag of all is theirs.
    """
    first = [frame[m["model"]].to_numpy(np.float64) <= float(drawable(m["steps"])[0]) for m in models]
    return int(np.logical_and.reduce(first).sum())


def too_few(frame: pd.DataFrame) -> str:
    """A sentence where less is shared by all models than statements need; nothing otherwise."""
    if len(frame) >= MIN_SHARED:
        return ""
    return f" {len(frame)} shared latents are too few to say which model comes first: {MIN_SHARED} are needed."


def lags_by_latent(e: Evolution, measure: str, latents: Sequence[int]) -> dict[tuple[str, str], tuple[np.ndarray, int]]:
    """(earlier model, later model) in the order of the recipe -> doublings [n] by which each of some latents is later
    in the second, and how many snapshots in common that is read from; all missing and 0 where these are too few.

    Raises:
        CorruptError: the curves are missing.
    """
    curves = e.norms(list(latents)) if measure == "norm" else e.own({"own": "agreement"}.get(measure, measure))
    if curves is None:
        raise CorruptError(f"{e.folder} lacks its curves. Remove it and run `workbench evolve` again.")
    mine = np.asarray(curves if measure == "norm" else curves[list(latents)]).T
    return {(a.model, b.model): lag(a, b, mine) for a, b in combinations(recorded_lines(e.metadata), 2)}


def behind(first: str, second: str) -> str:
    """What a lag is called."""
    return f"{model_name(second)} behind {model_name(first)}"


def lags(frame: pd.DataFrame, found: Mapping[tuple[str, str], tuple[np.ndarray, int]]) -> pd.DataFrame:
    """Mean lag of every later model behind every earlier one by part, with a bootstrap interval over latents, and the
    snapshots it is read from.
    """
    rng, rows = np.random.default_rng(0), []
    for (first, second), (by_latent, snapshots) in found.items():
        for name in PARTS:
            x = by_latent[(frame["part"] == name).to_numpy() & np.isfinite(by_latent)]
            draws = x[rng.integers(0, len(x), (RESAMPLES, len(x)))].mean(1) if len(x) > 1 else np.array([])
            low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (np.nan, np.nan)
            mean = float(x.mean()) if len(x) else np.nan
            row = {"pair": behind(first, second), "part": name, "lag": mean, "low": low, "high": high, "n": len(x)}
            rows.append(row | {"snapshots": snapshots})
    return pd.DataFrame(rows)


def _emerged(frame: pd.DataFrame, models: list[dict[str, Any]], zero: float) -> pd.DataFrame:
    """Share of the first and the last third that has emerged by each snapshot of each model; step 0 is drawn at
    ``zero`` for all of them.
    """
    rows = []
    for m in models:
        for name in (PARTS[0], PARTS[-1]):
            born = frame.loc[frame["part"] == name, m["model"]].to_numpy(np.float64)
            for step, x in zip(m["steps"], drawable(m["steps"]), strict=True):
                share = float((born <= x).mean()) if len(born) else np.nan
                series = f"{model_name(m['model'])}, {name}"
                at = x if step else zero
                rows.append({"step": at, "share": share, "series": series, "training_step": step, "n": len(born)})
    return pd.DataFrame(rows)


@figure("evolution_architectures", source="evolution", options=ArchitectureOptions)
def evolution_architectures(workspace: Workspace, item: Item, options: ArchitectureOptions) -> FigureData:
    """When latents that several models share emerge in each, by how much of them the token tells."""
    e = Evolution.open(item.path)
    models = models_of(e, item.id)
    names = [str(m["model"]) for m in models]
    frame = emergence_by_latent(e, options.measure)
    by = "" if options.measure == "own" else f"&by={options.measure}"
    steps = np.unique(np.concatenate([m["steps"] for m in models]))
    curve = _emerged(frame, models, float(drawable(steps)[0]))
    table = lags(frame, lags_by_latent(e, options.measure, frame["latent"].tolist()))
    said = "; ".join(_said(rows) for _, rows in table.groupby("pair", sort=False))
    drawn = table[table["snapshots"] > 0]
    pairs = list(table["pair"].unique())
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
                drawn,
                x="part",
                y="lag",
                low="low",
                high="high",
                series="pair" if len(pairs) > 1 else None,
                y_label=LAG,
                title=pairs[0] if len(pairs) == 1 else "each pair of models",
            ),
        ],
        caption=(
            f"Latents of one crosscoder that {listed(map(model_name, names))} share, by the step at which"
            f" {MEASURES[options.measure]} first reaches half of its largest value in each model; thirds by how much of"
            " a latent's code the current token explains. Mean lags, at the snapshots that two models have in common,"
            f" 95 % bootstrap over latents: {said}. {there_from_the_start(frame, models)} of {len(frame)} are there at"
            " the first snapshot of every model: they tell nothing of an order, and the mean lags hold them."
            f"{too_few(frame)}"
            " All models read the same text; each is one training run."
        ),
        table=table,
        n={"shared latents": len(frame), "latents": len(e)},
        columns={"low": "95 % from", "high": "to", "part": "latents", "snapshots": "snapshots in common"},
        alt=f"Share of shared latents emerged over training steps in each model, and lags by part. {said}.",
        inputs=[item],
        references=("evolution", "universality", "crosscoders", *of_models(names)),
        permalink=f"training?ev={item.id}{by}&evv={item.version}",
    )


def _said(rows: pd.DataFrame) -> str:
    """The lags of one pair in words."""
    by_part = rows.set_index("part")["lag"]
    if not rows["snapshots"].iloc[0]:
        return f"{rows['pair'].iloc[0]}: too few snapshots of one step"
    return (
        f"{rows['pair'].iloc[0]}: {by_part[PARTS[0]]:+.2f} doublings where the token tells, {by_part[PARTS[-1]]:+.2f}"
        " where it leaves open"
    )
