"""Figures of one dictionary's latents: contexts as shaded text, and densities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from pydantic import Field

from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.markup.latent import GROUP_TITLES
from workbench.markup.names import dictionary_words, latent_words
from workbench.markup.text import valid
from workbench.markup.tokens import cell, number
from workbench.results.records import LatentRecords
from workbench.workspace import Item, Workspace


class ContextOptions(StrictConfig):
    """Options of ``latent_contexts``."""

    latent: int = Field(default=0, ge=0, description="which latent")
    group: str = Field("top", description="which contexts: top, q1 to q4, random, near_miss")
    n: int = Field(default=6, ge=1, le=50, description="contexts shown")


@figure("latent_contexts", source="latents", options=ContextOptions)
def latent_contexts(workspace: Workspace, item: Item, options: ContextOptions) -> FigureData:
    """Contexts of one latent, tokens shaded by activation."""
    records = LatentRecords.open(item.path)
    contexts = records.contexts(options.latent, options.group, options.n)
    rows = [
        {
            "context": c + 1,
            "sequence": x.seq,
            "position": x.start + i,
            "token": valid(token),
            "activation": act,
            "peak": i == x.peak,
        }
        for c, x in enumerate(contexts)
        for i, (token, act) in enumerate(zip(x.tokens, x.acts, strict=True))
    ]
    frame = pd.DataFrame(rows, columns=["context", "sequence", "position", "token", "activation", "peak"])
    row = records.row(options.latent)
    top = float(row.get("max") or 0.0)
    name = latent_words(options.latent, item.id, records.metadata)
    said = GROUP_TITLES.get(options.group, (options.group, ""))[0].lower()
    peaks = frame[frame["peak"]].drop(columns="peak")
    fired = int(row.get("n_fired", 0))
    return FigureData(
        panels=[Panel("strips", frame, x="token", y="context", value="activation", centre="peak", top=top or None)],
        caption=(f"Contexts of {name} ({said}); shade is activation, from 0 to the latent's maximum of {number(top)}."),
        table=peaks.rename(columns={"token": "token at the peak"}).astype({"activation": float}),
        n={"contexts": len(contexts), "tokens": records.n_tokens, "fired": fired},
        inputs=[item],
        references=("topk", *of_models([str(records.metadata.get("model", ""))])),
        tokens=("token", "token at the peak"),
        permalink=f"latent?d={item.id}&i={options.latent}&g={options.group}&v={item.version}",
        alt=f"{len(contexts)} text excerpts in which {name} is active, with the active tokens shaded.",
    )


class AnatomyOptions(StrictConfig):
    """Options of ``latent_anatomy``: contexts and tokens shown."""

    latent: int = Field(default=0, ge=0, description="which latent")
    contexts: int = Field(default=5, ge=1, le=20, description="contexts shown")
    tokens: int = Field(default=6, ge=1, le=20, description="next tokens shown on each side")


@figure("latent_anatomy", source="latents", options=AnatomyOptions)
def latent_anatomy(workspace: Workspace, item: Item, options: AnatomyOptions) -> FigureData:
    """One latent: its activations, what it does to the next token, its strongest contexts."""
    records = LatentRecords.open(item.path)
    row, latent = records.row(options.latent), options.latent
    h = records.histogram(latent)
    used = np.flatnonzero(h.counts)
    stretch = slice(max(0, int(used[0]) - 1), min(len(h.counts), int(used[-1]) + 2)) if len(used) else slice(0, 1)
    bars = pd.DataFrame({"activation": h.edges[stretch].astype(float), "tokens": h.counts[stretch].astype(float)})
    panels = [
        Panel(
            "step",
            bars,
            x="activation",
            y="tokens",
            log_x=True,
            x_label="activation where it fires",
            y_label="tokens",
            title="activations",
        )
    ]
    effects = records.logits(latent)
    logits = pd.DataFrame(columns=["token", "logit", "side"])
    if effects is not None:
        sides = (("raises", effects.promoted), ("lowers", effects.suppressed))
        logits = pd.DataFrame(
            [
                {"token": cell(t, 18), "logit": v, "side": side}
                for side, found in sides
                for _, t, v in found[: options.tokens]
            ],
            columns=["token", "logit", "side"],
        )
        panels.append(
            Panel(
                "points",
                logits,
                x="token",
                y="logit",
                series="side",
                y_label="direct logit effect per unit of activation",
                title="next token",
            )
        )
    contexts = latent_contexts(workspace, item, ContextOptions(latent=latent, n=options.contexts))
    panels.append(replace(contexts.panels[0], title="strongest contexts"))
    label = row.get("label")
    named = f", labelled {label}" if isinstance(label, str) else ""
    return FigureData(
        panels=panels,
        caption=(
            f"{latent_words(latent, item.id, records.metadata).capitalize()}{named}: how strongly it fires, which next"
            " tokens its direction raises and lowers, and the contexts in which it fires most."
        ),
        table=pd.DataFrame(
            {
                "quantity": ["share of tokens", "maximum", "mean where it fires"],
                "value": [float(row.get(k, np.nan)) for k in ("density", "max", "mean")],
            }
        ),
        n=contexts.n,
        inputs=[item],
        references=contexts.references,
        tokens=("token",),
        permalink=f"latent?d={item.id}&i={latent}&v={item.version}",
        alt=f"Histogram, next-token effects and contexts of {latent_words(latent, item.id, records.metadata)}.",
    )


class DensityOptions(StrictConfig):
    """Options of ``latent_densities``."""

    bins: int = Field(default=40, ge=5, le=200, description="bars of the histogram")


@figure("latent_densities", source="latents", options=DensityOptions)
def latent_densities(workspace: Workspace, item: Item, options: DensityOptions) -> FigureData:
    """How often the latents of a dictionary fire."""
    records = LatentRecords.open(item.path)
    density = records.table["density"].to_numpy(float)
    alive = density[density > 0]
    edges = np.geomspace(0.5 / records.n_tokens, 1.0, options.bins + 1)
    counts = np.histogram(alive, edges)[0]
    frame = pd.DataFrame({"density": edges, "latents": np.append(counts, 0)})
    words = dictionary_words(item.id, records.metadata)
    quantiles = np.quantile(alive, [0.05, 0.5, 0.95]) if len(alive) else [np.nan] * 3
    table = pd.DataFrame(
        {
            "quantity": ["latents", "never fired", "density, 5 %", "density, median", "density, 95 %", "above 0.1"],
            "value": [float(len(density)), float((density == 0).sum()), *quantiles, float((density > 0.1).sum())],
        }
    )
    return FigureData(
        panels=[
            Panel(
                "step", frame, x="density", y="latents", x_label="share of tokens on which a latent fires", log_x=True
            )
        ],
        caption=(f"How often the latents of a dictionary of the {words} fire: share of tokens, logarithmic axis."),
        table=table,
        n={"latents": len(density), "alive": len(alive), "tokens": records.n_tokens},
        inputs=[item],
        references=("topk", *of_models([str(records.metadata.get("model", ""))])),
        permalink=f"latents?d={item.id}&v={item.version}",
        alt=f"Histogram of the firing densities of {len(alive)} latents of the {words}, logarithmic axis.",
    )
