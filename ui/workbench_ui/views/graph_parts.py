"""A node of a graph taken apart: through which heads or channels it is made, and why its head looks where it looks."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import streamlit as st

from workbench.markup.tokens import cell, escape
from workbench.results.splits import Splits, read_splits
from workbench_ui.kit import panels
from workbench_ui.kit.index import Entry
from workbench_ui.views.graphs import GraphFile

UNITS = 8  # heads or channels shown
PAIRS = 8


@st.cache_resource(show_spinner=False, max_entries=6)
def open_splits(folder: str, version: str) -> Splits | None:
    """The split of a graph, kept; ``version`` makes a new one be read anew."""
    return read_splits(Path(folder))


def splits_of(entry: Entry) -> Splits | None:
    """The split of a graph, None where it was drawn without."""
    return open_splits(str(entry.path), entry.version)


def by_units(entry: Entry, graph: GraphFile, chosen: str, name: Callable[[str], str]) -> None:
    """Loadings on the chosen node, and the pairs of latents behind the score of its strongest head.

    Args:
        name: a node's id -> HTML.
    """
    found = splits_of(entry)
    if found is None:
        if graph.by_id[chosen].kind in ("latent", "logit"):
            about = entry.metadata
            words = ["--model", shlex.quote(str(about.get("model") or "")), "--split"]
            words += ["--site", "TC"] if about.get("site") == "TC" else []
            words += ["--revision", shlex.quote(str(about["revision"]))] if about.get("revision") else []
            prompt = shlex.quote(str(about.get("prompt") or ""))
            panels.not_computed(
                "Heads and channels",
                f"workbench graph {' '.join(words)} -- {prompt}",
                "Each link is the sum of what goes through them.",
            )
        return
    loads = found.loadings[found.loadings["target"] == chosen]
    if loads.empty:
        return
    letters = set(loads["unit"].str[0])
    kind = "channels of the state" if "C" in letters else "heads" if "H" in letters else "heads of the state"
    panels.heading(f"By {kind}", "what all sources send to this node through each; the sum is all that makes it")
    reads = found.reads[found.reads["target"] == chosen]
    rows = [_unit(row, reads, graph) for row in _order(loads)]
    st.html(panels.table(["through", "brings", "most from"], rows, numeric=frozenset({1})))
    pairs = found.scores[found.scores["target"] == chosen]
    if len(pairs):
        _pairs(pairs, graph, name)


def _order(loads: pd.DataFrame) -> list[dict[str, object]]:
    """The largest units of all layers, then the rest, then what goes past."""
    special = loads["unit"].isin(["past", "others"])
    named = loads[~special].sort_values("value", key=abs, ascending=False)
    shown, left = named.head(UNITS), named.iloc[UNITS:]
    rows = shown.to_dict("records")
    rest = float(left["value"].sum() + loads[loads["unit"] == "others"]["value"].sum())
    if len(left) or (loads["unit"] == "others").any():
        rows.append({"layer": -1, "unit": "all others", "value": rest})
    past = loads[loads["unit"] == "past"].to_dict("records")
    return [*rows, *past]


def _unit(row: dict[str, object], reads: pd.DataFrame, graph: GraphFile) -> list[str]:
    unit, layer = str(row["unit"]), int(str(row["layer"]))
    title = f"past the mixer of layer {layer}" if unit == "past" else unit if layer < 0 else f"L{layer}{unit}"
    own = reads[(reads["layer"] == layer) & (reads["unit"] == unit)]
    where = ""
    if len(own):
        at = int(own.loc[own["value"].abs().idxmax(), "position"])
        where = f"<code>{escape(cell(graph.tokens[at], 16))}</code> at {at}" if 0 <= at < len(graph.tokens) else str(at)
    return [escape(title), f"{float(str(row['value'])):+.3g}", where]


def _pairs(pairs: pd.DataFrame, graph: GraphFile, name: Callable[[str], str]) -> None:
    """Which latent of the query with which of the key make the head look there."""
    first = pairs.iloc[0]
    q, k = int(first["query"]), int(first["key"])
    words = [f"<code>{escape(cell(graph.tokens[p], 16))}</code>" if p < len(graph.tokens) else str(p) for p in (q, k)]
    panels.heading(
        f"Why L{int(first['layer'])}{first['unit']} looks there",
        f"from {words[0]} (at {q}) to {words[1]} (at {k}): score {first['score']:+.2f}, {100 * first['pattern']:.0f} %"
        " of its attention; pairs of query and key add up to the score",
    )
    rows = [
        [name(str(r["query_part"])), name(str(r["key_part"])), f"{r['value']:+.3g}"]
        for r in pairs.head(PAIRS).to_dict("records")
    ]
    left = pairs.iloc[PAIRS:]["value"].sum()
    rows += [["all others", "", f"{left:+.3g}"]] if len(pairs) > PAIRS else []
    st.html(panels.table(["query", "key", "adds"], rows, numeric=frozenset({2})))
