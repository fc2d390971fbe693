"""Figures of an evolution (``evolution/``): phases, emergence, norm curves, claims with their nulls, attribution."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from sae.errors import MissingError, UsageError
from sae.strict import StrictConfig, nearest
from workbench.exporting.axes import log_ticks
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.markup.names import listed, model_name, place
from workbench.results.evolution import Evolution
from workbench.workspace import Item, Workspace

USUAL = ("kl_unigram", "kl_bigram", "dimensionality", "loss", "ev", "mean_norm")
STEP = "training step"
SCALES = {"training": "training scale", "raw": "the model's own units", "free": "norm-free, by latent scaling"}
WORDS = {
    "loss": "loss of the language model, nats",
    "kl_unigram": "KL to unigram frequencies, nats",
    "kl_bigram": "KL to bigrams, nats",
    "h1": "entropy H1",
    "h2": "entropy H2",
    "ev": "explained variance",
    "dimensionality": "feature dimensionality",
    "mean_norm": "mean decoder norm",
    "cosine_next": "cosine with the next snapshot",
}


class PhaseOptions(StrictConfig):
    """Options of ``evolution_phases``: columns of ``phases.parquet``; none means the first three of :data:`USUAL` that
    are there.
    """

    quantities: tuple[str, ...] = Field(
        (), description="columns of phases.parquet; none = the first three that are usual"
    )


class NormOptions(StrictConfig):
    """Options of ``evolution_norms``. Without latents, the mean curve of every emergence step is shown."""

    latents: tuple[int, ...] = Field(
        default=(), max_length=12, description="latents drawn; none = the mean curve of every step at which some emerge"
    )
    kind: Literal["training", "raw", "free"] = Field(
        "training", description="norms in the scale of training, in raw units, or free of the decoder norm"
    )
    relative: bool = Field(
        True, description="each latent relative to its largest norm"
    )  # to each latent's largest norm
    log_steps: bool = Field(True, description="steps on a log axis")


class NoOptions(StrictConfig):
    """A figure without options."""


class EmergenceOptions(StrictConfig):
    """Options of ``evolution_emergence``: the share of the largest norm that counts as emerged."""

    threshold: Literal["0.1", "0.5", "0.9"] = Field(
        "0.5", description="share of the largest norm that counts as emerged"
    )


class AttributionOptions(StrictConfig):
    """Options of ``evolution_attribution``; the first task and the last snapshot by default."""

    task: str = Field("", description="which task; default: the first")
    step: int | None = Field(None, description="which snapshot; default: the last")
    mode: Literal["destroy", "keep"] = Field("destroy", description="destroy the first k latents, or keep only them")


def drawable(steps: Any) -> np.ndarray:
    """Steps for a log axis: 0 lies a factor of two left of the first positive step."""
    x = np.asarray(steps, dtype=np.float64)
    positive = x[x > 0]
    return np.where(x > 0, x, (positive.min() if len(positive) else 2.0) / 2)


def step_ticks(steps: Any) -> tuple[tuple[float, str], ...]:
    """Marks of a log axis of steps, with 0 where :func:`drawable` puts it."""
    drawn, found = drawable(steps), np.asarray(steps)
    zero = ((float(drawn[found == 0][0]), "0"),) if (found == 0).any() else ()
    positive = drawn[found > 0]
    return (*zero, *(log_ticks(float(positive.min()), float(positive.max())) if len(positive) else ()))


def run_words(e: Evolution, item: Item) -> str:
    """``the layer 1 residual stream of mini-pythia, 8 snapshots``, or several sites or models."""
    about = e.metadata
    models = [model_name(str(m)) for m in about.get("models") or [about.get("model") or ""] if m]
    sites = [s for s in (about.get("site"), *(about.get("also") or ())) if isinstance(s, str)]
    if not models or not sites:
        return item.id
    where = listed(place(s).replace(", ", " ") for s in dict.fromkeys(sites))
    return f"the {where} of {listed(dict.fromkeys(models))}, {len(e.steps)} snapshots"


def value_unit(claim: str) -> str:
    """What the value of a claim is measured in: claims are drawn together only where their values compare."""
    for part, unit in UNITS:
        if part in claim:
            return unit
    return "value of the statistic"


UNITS = (
    ("Spearman", "rank correlation"),
    (" % of the alive", "share of latents"),
    ("emerge before", "snapshots earlier"),
    ("top latents by attribution beat", "area between the curves"),
    ("phase", "snapshot"),
    ("learnt before", "snapshots earlier"),
    ("dimensionality", "snapshot"),
)


def _about(e: Evolution, item: Item, ls: str = "") -> dict[str, Any]:
    models = [str(e.metadata.get("model", "")), *map(str, e.sources)]
    return {
        "inputs": [item],
        "references": ("evolution", "crosscoders", *of_models([item.id, *models])),
        "permalink": f"training?ev={item.id}{f'&ls={ls}' if ls else ''}&evv={item.version}",
    }


def _need(table: pd.DataFrame | None, what: str, item: Item) -> pd.DataFrame:
    if table is None or not len(table):
        raise MissingError(f"{item.id}: {what} not computed. Run `workbench evolve` again with it.")
    return table


def words(quantity: str) -> str:
    """A quantity of the phases in words, with its unit."""
    return WORDS.get(quantity, quantity.replace("_", " "))


def phase_quantities(phases: pd.DataFrame) -> list[str]:
    """The columns of a table of phases that can be drawn."""
    return [
        c
        for c in phases.columns
        if c not in ("step", "source", "tokens", "n") and phases[c].dtype.kind in "fiu" and phases[c].notna().any()
    ]


@figure("evolution_phases", source="evolution", options=PhaseOptions)
def evolution_phases(workspace: Workspace, item: Item, options: PhaseOptions) -> FigureData:
    """Quantities of the training phases over snapshots."""
    e = Evolution.open(item.path)
    table = _need(e.phases, "phases were", item)
    known = phase_quantities(table)
    quantities = options.quantities or tuple(q for q in USUAL if q in known)[:3]
    for q in quantities:
        if q not in known:
            raise UsageError(f"quantity {q!r} is not in the phases of {item.id} ({nearest(q, known)})")
    several = len(e.lines) > 1
    who = pd.Series({i: model for model, places in e.lines for i in places})
    drawn = table.assign(step=drawable(table["step"]), model=who.reindex(range(len(table))).to_numpy())
    panels = [
        Panel(
            "line",
            drawn[["step", q, *(["model"] if several else [])]].astype({q: float}).dropna().reset_index(drop=True),
            x="step",
            y=q,
            series="model" if several else None,
            x_label=STEP,
            y_label=words(q),
            title=words(q),
            log_x=True,
            x_ticks=step_ticks(table["step"]),
        )
        for q in quantities
    ]
    return FigureData(
        panels=panels,
        caption=f"{', '.join(words(q) for q in quantities)} over the snapshots of {run_words(e, item)}.",
        table=table[[*(["source"] if several else []), "step", *quantities]].reset_index(drop=True),
        n={"snapshots": len(table), "tokens per snapshot": int(table["n"].max()) if "n" in table else 0},
        alt=f"Curves of {', '.join(quantities)} over training steps.",
        **_about(e, item),
    )


@figure("evolution_norms", source="evolution", options=NormOptions)
def evolution_norms(workspace: Workspace, item: Item, options: NormOptions) -> FigureData:
    """Decoder norms of latents over snapshots."""
    e = Evolution.open(item.path)
    table = e.table
    chosen = np.array(options.latents or table["latent"], dtype=np.int64)
    norms = e.norms(chosen, options.kind)
    if norms is None:
        raise MissingError(
            f"{item.id}: norms of kind {options.kind!r} were not computed. Run `workbench evolve` again with them."
        )
    norms = np.asarray(norms, dtype=np.float64)
    if options.relative:
        top = np.nanmax(np.where(np.isnan(norms), -np.inf, norms), axis=1, keepdims=True)
        norms = np.divide(norms, top, out=np.full_like(norms, np.nan), where=top > 0)
    steps = drawable(e.steps) if options.log_steps else np.asarray(e.steps, dtype=np.float64)
    several = len(e.lines) > 1
    if several and not options.latents:
        raise UsageError(
            f"{item.id} follows several models, whose latents emerge in each at another step. Name latents."
        )
    if options.latents:
        groups = {f"latent {i}": norms[[k]] for k, i in enumerate(options.latents)}
    else:
        if "emergence_0.5_step" not in table:
            raise MissingError(
                f"{item.id}: emergence was not computed, so curves cannot be grouped by it. Name latents instead."
            )
        born = table["emergence_0.5_step"].to_numpy(dtype=float, na_value=np.nan)
        groups = {
            f"emerged at {int(s)} (n {int((born == s).sum())})": norms[born == s]
            for s in np.unique(born[np.isfinite(born)])
        }
    frames = []
    for name, part in groups.items():
        known = np.isfinite(part).sum(axis=0)
        mean = np.divide(np.nansum(part, axis=0), known, out=np.full(len(steps), np.nan), where=known > 0)
        for model, at in e.lines:
            series = f"{name}, {model_name(model)}" if several else name
            frames.append(pd.DataFrame({"step": steps[at], "norm": mean[at], "latents": series, "n": known[at]}))
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["step", "norm", "latents", "n"])
    kind = SCALES[options.kind]
    wide = frame.pivot_table(index="step", columns="latents", values="norm", sort=False).reset_index()
    wide.columns = [str(c) for c in wide.columns]
    return FigureData(
        panels=[
            Panel(
                "line",
                frame,
                x="step",
                y="norm",
                series="latents",
                log_x=options.log_steps,
                x_label=STEP,
                x_ticks=step_ticks(e.steps) if options.log_steps else (),
                y_label="decoder norm / its largest" if options.relative else f"decoder norm, {kind}",
            )
        ],
        caption=(
            f"Decoder norms over the snapshots of {run_words(e, item)}"
            f" ({kind}{', each latent relative to its largest' if options.relative else ''}"
        )
        + ("; means over the latents that emerged at each step)." if not options.latents else ")."),
        table=wide,
        n={"latents": len(chosen), "snapshots": len(steps)},
        alt=f"Norm curves of {', '.join(groups)}.",
        **_about(e, item, ls="_".join(map(str, options.latents))),
    )


@figure("evolution_emergence", source="evolution", options=EmergenceOptions)
def evolution_emergence(workspace: Workspace, item: Item, options: EmergenceOptions) -> FigureData:
    """How many latents emerge at which snapshot, by kind."""
    e = Evolution.open(item.path)
    table = e.table
    column = f"emergence_{options.threshold}_step"
    if len(e.lines) > 1:
        raise MissingError(f"{item.id} follows several models: `workbench export evolution-architectures` draws them.")
    if column not in table:
        raise MissingError(
            f"{item.id}: emergence at {options.threshold} was not computed. Run `workbench evolve` again."
        )
    alive = table[table["alive"].astype(bool)] if "alive" in table else table
    kinds = alive["kind"].fillna("unclassified").astype(str) if "kind" in alive else pd.Series("all", index=alive.index)
    counts = alive.assign(kind=kinds).groupby(["kind", column], observed=True).size().rename("latents").reset_index()
    full = pd.MultiIndex.from_product(
        [sorted(counts["kind"].unique()), sorted(e.steps.tolist())], names=["kind", column]
    )
    counts = (
        counts.set_index(["kind", column])
        .reindex(full, fill_value=0)
        .reset_index()
        .rename(columns={column: "emergence_step"})
    )
    frame = counts.assign(step=drawable(counts["emergence_step"]))
    wide = counts.pivot(index="emergence_step", columns="kind", values="latents").reset_index()
    wide.columns = [str(c) for c in wide.columns]
    return FigureData(
        panels=[
            Panel(
                "line",
                frame,
                x="step",
                y="latents",
                series="kind",
                log_x=True,
                x_label=STEP,
                x_ticks=step_ticks(e.steps),
                y_label="latents that emerge",
            )
        ],
        caption=(
            f"Latents of {run_words(e, item)} by the snapshot at which their decoder norm first reaches"
            f" {options.threshold} of its"
            " largest value."
        ),
        table=wide,
        n={"latents": len(alive), "emerged": int(alive[column].notna().sum())},
        alt="Counts of emerging latents over training steps, by kind.",
        **_about(e, item),
    )


@figure("evolution_claims", source="evolution", options=NoOptions)
def evolution_claims(workspace: Workspace, item: Item, options: NoOptions) -> FigureData:
    """Every claim about the evolution with its interval and its null."""
    e = Evolution.open(item.path)
    table = _need(e.statistics, "statistics were", item)
    known = table[table["value"].notna()]
    nulls = known[known["null_mean"].notna()]
    rows = [
        {"claim": c["claim"], "value": c[value], "low": c[low], "high": c[high], "series": series}
        for series, part, (value, low, high) in (
            ("measured", known, ("value", "low", "high")),
            ("null", nulls, ("null_mean", "null_low", "null_high")),
        )
        for c in part.to_dict("records")
    ]
    frame = pd.DataFrame(rows, columns=["claim", "value", "low", "high", "series"])
    frame = frame.astype({"value": float, "low": float, "high": float}).assign(unit=frame["claim"].map(value_unit))
    units = list(dict.fromkeys(frame["unit"]))
    return FigureData(
        panels=[
            Panel(
                "points",
                frame[frame["unit"] == unit].reset_index(drop=True),
                x="claim",
                y="value",
                low="low",
                high="high",
                series="series",
                y_label=unit,
                title=unit,
            )
            for unit in units
        ],
        caption=(
            f"Claims about {run_words(e, item)}: measured values with 95 % intervals, beside their nulls, by what"
            " they are"
            " measured in; claims without enough latents are in the table only."
        ),
        table=table[["claim", "value", "low", "high", "n", "null_mean", "p", "verdict"]].reset_index(drop=True),
        n={"claims": len(table), "measured": len(known)},
        columns={"low": "95 % from", "high": "to", "null_mean": "null"},
        alt="Statistics of claims and their null distributions as points with intervals.",
        **_about(e, item),
    )


@figure("evolution_attribution", source="evolution", options=AttributionOptions)
def evolution_attribution(workspace: Workspace, item: Item, options: AttributionOptions) -> FigureData:
    """How much of a task's metric a few latents carry, by ranking."""
    e = Evolution.open(item.path)
    table = _need(e.attribution, "attribution was", item)
    tasks = sorted(table["task"].unique())
    task = options.task or tasks[0]
    if task not in tasks:
        raise UsageError(f"task {task!r} is not in the attribution of {item.id} ({nearest(task, tasks)})")
    part = table[table["task"] == task]
    step = int(part["step"].max()) if options.step is None else options.step
    if step not in set(part["step"]):
        raise UsageError(
            f"step {step} is not in the attribution of {task}; it has {', '.join(map(str, sorted(set(part['step']))))}."
        )
    part = part[(part["step"] == step) & (part["mode"] == options.mode)].reset_index(drop=True)
    what = "destroyed" if options.mode == "destroy" else "kept alone"
    return FigureData(
        panels=[
            Panel(
                "line",
                part[["k", "metric", "low", "high", "share", "ranking", "n"]],
                x="k",
                y="metric",
                low="low",
                high="high",
                series="ranking",
                log_x=bool((part["k"] > 0).all()),
                x_label=f"latents {what}",
                y_label="task metric",
                dashed=("random",),
            )
        ],
        caption=(
            f"Metric of {task} at step {step} when the first k latents by each ranking are {what}, in"
            f" {run_words(e, item)}; bands"
            " are 95 % intervals over prompts."
        ),
        table=part[["ranking", "k", "metric", "low", "high", "share"]],
        n={"prompts": int(part["n"].max()) if len(part) else 0},
        columns={"low": "95 % from", "high": "to"},
        alt=f"Task metric against the number of latents {what}, one curve per ranking.",
        **_about(e, item),
    )
