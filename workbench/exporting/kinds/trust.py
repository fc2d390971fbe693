"""Figures of the cards of evidence: one latent's, each number beside chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from pydantic import Field

from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.markup.names import latent_words
from workbench.results.trust import FIELDS, Trust
from workbench.workspace import Item, Workspace

APART = ("effect",)  # in nats: in the table, not on an axis from 0 to 1


class EvidenceOptions(StrictConfig):
    """Options of ``latent_evidence``."""

    latent: int = Field(default=0, ge=0, description="which latent")


@figure("latent_evidence", source="trust", options=EvidenceOptions)
def latent_evidence(workspace: Workspace, item: Item, options: EvidenceOptions) -> FigureData:
    """What speaks for one latent, each number beside chance."""
    found = Trust.open(item.path)
    card = found.card(options.latent)
    rows = [
        {
            "evidence": f.name,
            "value": _number(card.get(f.value)),
            "chance": _number(card.get(f.chance) if f.chance else 0.5),
            "n": pd.NA if card.get(f.n) is None else int(card[f.n]),
            "n counts": f.unit,
        }
        for f in FIELDS
    ]
    table = pd.DataFrame(rows).astype({"n": "Int64"})
    shown = table[[f.value not in APART for f in FIELDS]].dropna(subset=["value"])
    parts = [
        shown[["evidence", column]].rename(columns={column: "number"}).assign(series=series)
        for column, series in (("value", "this latent"), ("chance", "chance"))
    ]
    frame = pd.concat(parts, ignore_index=True).dropna(subset=["number"])
    about = {"model": found.metadata.get("model"), "site": found.metadata.get("site")}
    name = latent_words(options.latent, item.id, {**about, "revision": found.metadata.get("revision")})
    word = card.get("word")
    said = f" The calibrated score calls it {word}." if word else ""
    return FigureData(
        panels=[
            Panel(
                "points",
                frame,
                x="evidence",
                y="number",
                series="series",
                y_label="correlation, cosine or share",
                dashed=("chance",),
            )
        ],
        caption=(
            f"Evidence for {name} on held-out text, beside what chance gives for latents that fire as often.{said}"
        ),
        table=table,
        n={"tokens": int(found.metadata["n_tokens"]), "fired": int(card["n_fired"] or 0)},
        inputs=[item],
        references=("topk", *of_models([str(found.metadata.get("model", ""))])),
        permalink=f"latent?d={item.id}&i={options.latent}{_version(workspace, item.id)}",
        alt=f"Points for {len(shown)} kinds of evidence for {name}, each beside its chance level.",
    )


def _version(workspace: Workspace, dictionary: str) -> str:
    """The data version of the page that shows a card: that of the latent's records; nothing without them."""
    records = workspace.complete("latents", dictionary)
    return f"&v={workspace.get('latents', dictionary).version}" if records else ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else np.nan
