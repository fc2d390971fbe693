"""Figures of a text that a model reads now: what fires on it (``text_latents``), and what pushing a latent does to the
next token (``steered_next_token``). They run the language model; all other figures read what is on disk.

Numbers are rounded to four digits, so that sums in another order (another machine, other threads) give the same table.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pandas as pd
from pydantic import Field

from sae.errors import MissingError, UsageError
from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.markup.names import dictionary_words
from workbench.markup.text import valid
from workbench.markup.tokens import cell, clip, number, visible
from workbench.results.characters import cells_of
from workbench.results.records import LatentRecords
from workbench.workspace import Item, Workspace

TEXT = "def read(self, path):\n    with open(path) as f:\n        return f.read()\n"
QUOTED = 60  # characters of the text that a caption quotes
LINKED = 2000  # characters of a text that an address carries
MOVED = 12  # tokens of the next-token distribution that are drawn


class TextOptions(StrictConfig):
    """Options of ``text_latents``."""

    text: str = Field(TEXT, min_length=1, max_length=20_000, description="the text that is read")
    n: int = Field(8, ge=1, le=20, description="latents shown")
    token: int = Field(-1, ge=-1, description="only what fires on this token, counted as the page does; -1: anywhere")


class SteerOptions(StrictConfig):
    """Options of ``steered_next_token``."""

    text: str = Field(TEXT, min_length=1, max_length=20_000, description="the text that is read")
    latent: int = Field(0, ge=0, description="which latent is pushed, at every position")
    factor: float = Field(1.0, ge=-10, le=10, description="by how many times its largest activation")


@figure("text_latents", source="dictionaries", options=TextOptions, live=True)
def text_latents(workspace: Workspace, item: Item, options: TextOptions) -> FigureData:
    """Latents on a text of one's own, token by token."""
    from workbench.analysis.evaluation.probe import by_share, fires_on, probe

    model, dictionary, reference = _loaded(item)
    found = probe(model, dictionary, reference, options.text)
    records = _records(workspace, item)
    cells = cells_of(found.tokens, options.text)
    if options.token >= len(cells):
        raise UsageError(f"token {options.token} is not in the text: it has {len(cells)} (0 to {len(cells) - 1}).")

    def maximum(latent: int) -> float:
        return _known(records, latent)[0]

    places = range(len(found.tokens)) if options.token < 0 else cells[options.token][1]
    every = by_share(fires_on(found, places), maximum)
    panels, table = [], []
    for latent, value in every[: options.n]:
        top, words = _known(records, latent)
        acts = found.activations(latent)
        merged = [max(acts[t] for t in at) for _, at in cells]
        peak = int(np.argmax(merged)) if options.token < 0 else options.token
        share = round(value / top, 4) if top > 0 else np.nan
        frame = pd.DataFrame(
            {
                "latent": latent,
                "position": range(len(cells)),
                "token": [valid(word) for word, _ in cells],
                "activation": [_digits(v) for v in merged],
                "centre": [float(j == peak) for j in range(len(cells))],
            }
        )
        said = f"#{latent} at {number(value)}" + (f", {100 * share:.0f} % of its maximum" if top > 0 else "")
        title = f"{said} · {words}" if words else said
        panels.append(
            Panel(
                "strips",
                frame,
                x="token",
                y="latent",
                value="activation",
                centre="centre",
                top=_digits(max(top, value)),  # a pass of the model may differ in the last bit from the one before
                title=clip(title, 90),
            )
        )
        table.append([latent, words, cell(cells[peak][0], 24), _digits(value), share])
    if not panels:
        where = "this text" if options.token < 0 else f"token {options.token} of this text"
        raise MissingError(f"no latent of {item.id} fires on {where}, so there is nothing to draw.")
    where = "it" if options.token < 0 else f"its token {options.token}, “{visible(cells[options.token][0])}”"
    scale = "its own largest activation in the corpus" if records is not None else "its largest activation here"
    words = dictionary_words(item.id, reference.metadata)
    return FigureData(
        panels=panels,
        caption=(
            f"What fires in the {words} on the text “{_quoted(options.text)}”: the {len(panels)} of {len(every)}"
            f" latents on {where} that come nearest to their maximum. Shade is activation, from 0 to {scale}; a row"
            " shows the stretch of the text around its strongest token."
            + (f" The last {found.cut:,} characters were not read." if found.cut else "")
        ),
        table=pd.DataFrame(table, columns=["latent", "fires on", "token", "activation", "of its maximum"]),
        n={"tokens": len(found.tokens), "latents": len(every)},
        inputs=_inputs(workspace, item),
        references=of_models([reference.model_name]),
        tokens=("token", "fires on"),
        permalink=_link(workspace, item, options.text, at=options.token if options.token >= 0 else None),
        alt=f"A text with the tokens shaded on which latents of the {words} fire, one row per latent.",
    )


@figure("steered_next_token", source="dictionaries", options=SteerOptions, live=True)
def steered_next_token(workspace: Workspace, item: Item, options: SteerOptions) -> FigureData:
    """The next token after a text of one's own, without and with one latent pushed."""
    from workbench.analysis.evaluation.probe import probe, push

    model, dictionary, reference = _loaded(item)
    found = probe(model, dictionary, reference, options.text)
    top, words = _known(_records(workspace, item), options.latent)
    unit = max(top, max(found.activations(options.latent), default=0.0)) or 1.0
    amount = options.factor * unit
    moved = push(model, dictionary, reference, options.text, options.latent, amount, n=MOVED)
    order = sorted(zip(moved.tokens, moved.before, moved.after, strict=True), key=lambda x: -abs(x[2] - x[1]))
    names = _told_apart([cell(token, 18) for token, _, _ in order])
    before, after = [_digits(b) for _, b, _ in order], [_digits(a) for _, _, a in order]
    sides = [("without", before), ("with the push", after)]
    frame = pd.DataFrame(
        [
            {"token": name, "probability": p, "model": side}
            for side, values in sides
            for name, p in zip(names, values, strict=True)
        ]
    )
    told = f" (fires on {words})" if words else ""
    where = dictionary_words(item.id, reference.metadata)
    seen = "its maximum in the corpus" if top >= unit else "its largest activation here"
    often = f", {options.factor:g} times {seen}" if top > 0 or max(found.activations(options.latent)) > 0 else ""
    return FigureData(
        panels=[
            Panel(
                "points",
                frame,
                x="token",
                y="probability",
                series="model",
                y_label="probability of the next token",
            )
        ],
        caption=(
            f"The next token after “{_quoted(options.text)}”, without and with latent {options.latent}{told} of the"
            f" {where} pushed by {number(amount)} at every position{often}: the {len(order)} tokens that move most,"
            f" largest change first. KL from without to with: {moved.kl:.3g} nats."
        ),
        table=pd.DataFrame({"token": names, "without": before, "with": after, "change": np.subtract(after, before)}),
        n={"texts": 1, "tokens": len(found.tokens)},
        inputs=_inputs(workspace, item),
        references=of_models([reference.model_name]),
        tokens=("token",),
        permalink=_link(workspace, item, options.text, sA=options.latent, fA=f"{options.factor:g}"),
        alt=f"Probabilities of the next token without and with latent {options.latent} of the {where} pushed.",
    )


@lru_cache(maxsize=1)
def _load(path: str, digest: str) -> tuple[Any, Any, Any]:
    from workbench.dictionaries.reference import find_dictionary
    from workbench.models import load_model

    folder = Path(path)
    reference = find_dictionary(Workspace(folder.parent.parent, create=False), folder.name)
    return load_model(reference.model_name, revision=reference.revision), reference.load(), reference


def _loaded(item: Item) -> tuple[Any, Any, Any]:
    """(model, dictionary, reference) of an item; kept for the last one, as a figure is made again with every option."""
    return _load(str(item.path), item.digest)


def _records(workspace: Workspace, item: Item) -> LatentRecords | None:
    """The latents' records of a dictionary, where they were made."""
    if not workspace.complete("latents", item.id):
        return None
    return LatentRecords.open(workspace.get("latents", item.id).path)


def _known(records: LatentRecords | None, latent: int) -> tuple[float, str]:
    """(Largest activation in the corpus, 0 where unknown; the label, else the token on which it fires most)."""
    if records is None or not 0 <= latent < len(records):
        return 0.0, ""
    row = records.row(latent)
    label, peak = row.get("label"), row.get("peak_text")
    words = visible(" ".join(label.split())) if isinstance(label, str) and label.strip() else ""
    return float(row.get("max") or 0.0), clip(words or (cell(peak) if isinstance(peak, str) else ""), 60)


def _inputs(workspace: Workspace, item: Item) -> list[Item]:
    """The dictionary, and its records where their words and maxima are shown."""
    known = workspace.complete("latents", item.id)
    return [item, *([workspace.get("latents", item.id)] if known else [])]


def _link(workspace: Workspace, item: Item, text: str, **more: object) -> str:
    """The page that shows the same; a text too long for an address is left out."""
    where: dict[str, object] = {"d": item.id, "v": _inputs(workspace, item)[-1].version}
    where |= {"text": text} if len(text) <= LINKED else {}
    return f"probe?{urlencode(where | {k: v for k, v in more.items() if v is not None})}"


def _quoted(text: str) -> str:
    shown = visible(" ".join(text.split()))
    return shown if len(shown) <= QUOTED else f"{shown[:QUOTED]}…"


def _digits(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def _told_apart(names: list[str]) -> list[str]:
    """Names of which no two are alike: tokens that are shown alike are numbered."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out
