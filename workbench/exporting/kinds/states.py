"""Figures of what a model keeps of each token (``states/``): who reads whom, and what of the prediction hangs on it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from sae.errors import UsageError
from sae.strict import StrictConfig
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.markup.names import model_name
from workbench.results.states import States
from workbench.workspace import Item, Workspace

WHAT = {
    "share": "share of what a position receives",
    "effect": "fall of the next token's log probability, nats",
    "survival": "what is left of the write",
}


class ReadOptions(StrictConfig):
    """Options of ``state_reads``: which text, layer and snapshot, and what of each pair of tokens."""

    text: int = Field(0, ge=0, description="number of the text, counted from 0")
    layer: int | None = Field(None, ge=0, description="layer of the model; default: that of the largest effect")
    snapshot: int = Field(-1, description="number of the snapshot; -1 = the last")
    what: Literal["share", "effect", "survival"] = Field(
        "share", description="who reads whom, what the prediction loses without it, or what is left of it"
    )


@figure("state_reads", source="states", options=ReadOptions)
def state_reads(workspace: Workspace, item: Item, options: ReadOptions) -> FigureData:
    """Who reads what is kept of each token, in one layer."""
    found = States.open(item.path)
    text, layers = found.checked(options.text), [int(x["layer"]) for x in found.layers]
    layer = options.layer if options.layer is not None else int(found.manifest.numbers["largest_effect"]["layer"])
    if layer not in layers:
        raise UsageError(
            f"layer {layer} of {item.id} keeps nothing from token to token; layers {', '.join(map(str, layers))} do."
        )
    k, snapshots = layers.index(layer), found.snapshot_names
    if not -len(snapshots) <= options.snapshot < len(snapshots):
        raise UsageError(f"snapshot {options.snapshot} is not in {item.id}: it has {len(snapshots)}, counted from 0.")
    s = options.snapshot % len(snapshots)
    values = _values(found, text, k, s, options.what, item)
    names = [f"{i} {t}" for i, t in enumerate(found.texts[text]["tokens"])]
    written, reader = np.meshgrid(np.arange(len(names)), np.arange(len(names)), indexing="ij")
    keep = reader >= written
    frame = pd.DataFrame(
        {
            "written": written[keep],
            "reader": np.array(names)[reader[keep]],
            "value": values[keep],
            "token": np.array(found.texts[text]["tokens"])[written[keep]],
        }
    )
    ticks = tuple((float(i), names[i]) for i in range(0, len(names), max(1, -(-len(names) // 16))))
    kind, model = found.layers[k]["kind"], model_name(str(found.metadata["model"]))
    chosen = [
        f"&{key}={value}"
        for key, value, usual in (
            ("tx", text, 0),
            ("lay", layer, found.manifest.numbers["largest_effect"].get("layer")),
            ("rev", snapshots[s], snapshots[-1]),
            ("what", options.what, "share"),
        )
        if value != usual
    ]
    strongest = frame.dropna().sort_values("value", key=abs, ascending=False, kind="stable").head(12)
    where = f"layer {layer} ({kind}) of {model}, {snapshots[s]}"
    return FigureData(
        panels=[
            Panel(
                "heat",
                frame[["written", "reader", "value"]],
                x="written",
                y="reader",
                value="value",
                diverging=options.what == "effect",
                x_ticks=ticks,
                x_label="written at token",
                y_label="read at token",
                value_label=WHAT[options.what],
            )
        ],
        caption=f"{WHAT[options.what][0].upper()}{WHAT[options.what][1:]}, by the token it was written at and the token"
        f" it is read at, in {where}, on text {text + 1} of {len(found.texts)}.",
        table=strongest[["token", "written", "reader", "value"]].reset_index(drop=True),
        n={"tokens": len(names)},
        tokens=("reader", "token"),
        columns={"value": WHAT[options.what]},
        alt=f"Heat map of tokens by tokens: {WHAT[options.what]} in {where}.",
        inputs=[item],
        references=("universality", *of_models([str(found.metadata["model"])])),
        permalink=f"states?st={item.id}{''.join(chosen)}&stv={item.version}",
    )


def _values(found: States, text: int, k: int, s: int, what: str, item: Item) -> Any:
    """[written, reader] of one layer and snapshot."""
    if what == "share":
        return found.array(text, "share")[s, k].T
    if what == "effect":
        return found.array(text, "effect")[s, k]
    survival = found.of_layer(text, k, "survival")
    if survival is None:
        raise UsageError(
            f"{found.layers[k]['kind']} of {item.id} has no survival (what is left of a token later): attention keeps"
            " each token as it is. Choose a recurrent layer."
        )
    T = survival.shape[1]
    written, reader = np.meshgrid(np.arange(T), np.arange(T), indexing="ij")
    return survival[s][written, np.maximum(reader - written, 0)].astype(np.float32)
