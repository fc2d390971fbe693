"""Figures of one dictionary's latents: contexts as shaded text, and densities."""

from __future__ import annotations

import numpy as np
import pandas as pd
from pydantic import Field

from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.markup.text import valid
from workbench.results.records import LatentRecords
from workbench.workspace import Item, Workspace


class ContextOptions(StrictConfig):
    """Options of ``latent_contexts``."""

    latent: int = Field(default=0, ge=0)
    group: str = "top"
    n: int = Field(default=6, ge=1, le=50)


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
    peaks = frame[frame["peak"]].drop(columns="peak")
    fired = int(row.get("n_fired", 0))
    return FigureData(
        panels=[Panel("strips", frame, x="token", y="context", value="activation", centre="peak")],
        caption=(
            f"Contexts of latent {options.latent} of {item.id} (group {options.group}); shade is activation, from 0 to"
            " the largest shown."
        ),
        table=peaks.rename(columns={"token": "token at the peak"}).astype({"activation": float}),
        n={"contexts": len(contexts), "tokens": records.n_tokens, "fired": fired},
        inputs=[item],
        references=("topk", *of_models([str(records.metadata.get("model", ""))])),
        tokens=("token", "token at the peak"),
        permalink=f"latent?d={item.id}&i={options.latent}&g={options.group}&v={item.version}",
        alt=(
            f"{len(contexts)} text excerpts in which latent {options.latent} of {item.id} is active, with the active"
            " tokens shaded."
        ),
    )


class DensityOptions(StrictConfig):
    """Options of ``latent_densities``."""

    bins: int = Field(default=40, ge=5, le=200)


@figure("latent_densities", source="latents", options=DensityOptions)
def latent_densities(workspace: Workspace, item: Item, options: DensityOptions) -> FigureData:
    """How often the latents of a dictionary fire."""
    records = LatentRecords.open(item.path)
    density = records.table["density"].to_numpy(float)
    alive = density[density > 0]
    edges = np.geomspace(0.5 / records.n_tokens, 1.0, options.bins + 1)
    counts = np.histogram(alive, edges)[0]
    frame = pd.DataFrame({"density": edges, "latents": np.append(counts, 0)})
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
        caption=f"Firing densities of {item.id}.",
        table=table,
        n={"latents": len(density), "alive": len(alive), "tokens": records.n_tokens},
        inputs=[item],
        references=("topk", *of_models([str(records.metadata.get("model", ""))])),
        permalink=f"latents?d={item.id}&v={item.version}",
        alt=f"Histogram of the firing densities of {len(alive)} latents of {item.id} on a logarithmic axis.",
    )
