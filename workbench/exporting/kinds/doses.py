"""Figure of a dose-response (``doses/``): what stronger pushes of latents do after one prompt."""

from __future__ import annotations

from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.markup.text import visible
from workbench.results.doses import DoseRecords
from workbench.workspace import Item, Workspace

HEADINGS = {"kl": "KL, nats", "logit": "logit", "probability": "probability"}
SHOWN = 60  # characters of the prompt that a caption quotes


class DoseOptions(StrictConfig):
    """``dose_response`` has no options."""


@figure("dose_response", source="doses", options=DoseOptions)
def dose_response(workspace: Workspace, item: Item, options: DoseOptions) -> FigureData:
    """What stronger pushes of latents do to the next token and to the text."""
    records = DoseRecords.open(item.path)
    frame, about = records.table, records.metadata
    token, latents = visible(about["target"]), " and ".join(f"#{i}" for i in about["latents"])
    amount = f"added to {latents} at every position"
    measured = [
        ("kl", "KL from the unchanged model, nats", "KL"),
        ("logit", f"logit of “{token}” less the mean", "the followed token's logit"),
        ("probability", f"probability of “{token}”", "its probability"),
        ("perplexity", "perplexity under the unchanged model", "perplexity"),
    ]
    texts = int(about.get("texts") or 0)
    panels = []
    for column, label, title in measured:
        ends = [f"{column}_{end}" for end in ("low", "high")] if texts else []
        if len(part := frame[["amount", column, *ends]].dropna()):
            low, high = ends or (None, None)
            what = {"x": "amount", "y": column, "low": low, "high": high, "x_label": amount, "y_label": label}
            panels.append(Panel("line", part, title=title, **what))  # type: ignore[arg-type]
    frame = frame.dropna(axis=1, how="all")
    held = "".join(f" Latent #{i} is held at {value:g}." for i, value in about["held"])
    prompt = visible(about["prompt"])
    quoted = prompt if len(prompt) <= SHOWN else "…" + prompt[-SHOWN:]
    made = (
        f" Perplexity: of the {about['tokens']} likeliest tokens that the steered model goes on with (fewer where the"
        " text ends), under the model without any change; text that the steered model is sure of and the unchanged"
        " model is not raises it, repetition lowers it."
        if about["tokens"]
        else ""
    )
    where = (
        f"{texts} held-out texts, each cut somewhere: means (of the perplexity the geometric one) with 95 % bootstrap"
        " intervals over texts"
        if texts
        else f"one prompt, “{quoted}”"
    )
    return FigureData(
        panels=panels,
        caption=(
            f"Dose and response of {latents} of {about['dictionary']} after {where}. KL and the logit of"
            f" “{token}” are of the next token.{held}{made}"
        ),
        table=frame,
        n={"texts": texts, "amounts": len(frame)} if texts else {"prompts": 1, "amounts": len(frame)},
        inputs=[item],
        references=of_models([str(about["model"])]),
        permalink=f"probe?d={about['dictionary']}&ds={item.id}&dsv={item.version}",
        columns=HEADINGS,
        alt=f"KL, the logit and probability of one token, and perplexity, along the amount added to {latents}.",
    )
