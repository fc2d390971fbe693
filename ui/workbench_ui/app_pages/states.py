"""What is written and read: what each layer keeps of each token, how long, who reads it, beside attention."""

from __future__ import annotations

from typing import Any

import streamlit as st

from workbench.exporting.kinds.states import WHAT
from workbench.markup.names import model_name
from workbench.markup.tags import div
from workbench.markup.tokens import clip, escape, visible
from workbench.results.states import States
from workbench_ui.components.memory import WAYS, memory, message, side
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version, choose_of
from workbench_ui.kit.figures import chart
from workbench_ui.kit.index import Entry

COMMAND = "states mini-mamba"
TRAP = (
    "A share is what a position receives of a write by size, not what it needs of it; the effect is measured: the write"
    " is removed, and everything after goes on without it. Effects of several removals do not add up."
)


@st.fragment(key="states_body")
def body() -> None:
    """Choice of the texts and the model with a state; the view; the same as a figure."""
    with panels.guarded("The states"):
        panels.page_title(
            "What is written and read", "token by token: what a state keeps, for how long, and who reads it"
        )
        entries = data.index().of("states")
        if not entries:
            panels.not_computed("States", f"workbench {COMMAND}")
            return
        panels.trap(TRAP)
        first = [e for e in entries if e.metadata.get("architecture") != "transformer"] or list(entries)
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            entry = choose_of(
                first,
                "Model and texts",
                "st",
                what="States",
                command=COMMAND,
                text=_name,
                clears=("tx", "tok"),
                width=360,
            )
            assert entry is not None
            beside = _beside(entry, entries)
            found = _open(str(entry.path), entry.version)
            text = _text(found)
        check_version(entry, "st")
        _view(entry, found, beside, text)
        _figure(entry, found, text)


def _name(e: Entry) -> str:
    """``mini-mamba, prompts of induction``."""
    texts = f"prompts of {e.metadata['task']}" if e.metadata.get("task") else "own texts"
    return visible(f"{model_name(str(e.metadata.get('model') or e.id))}, {texts}")


@st.cache_resource(show_spinner=False, max_entries=6)
def _open(folder: str, version: str) -> States:
    """A result, kept; ``version`` makes a new one be read anew."""
    return States.open(folder)


def _beside(entry: Entry, entries: list[Entry]) -> Entry | None:
    """The first result of another model on the same texts, a Transformer where there is one."""
    same = [e for e in entries if e.id != entry.id and e.metadata.get("texts") == entry.metadata.get("texts")]
    return min(same, key=lambda e: (e.metadata.get("architecture") != "transformer", e.id), default=None)


def _text(found: States) -> int:
    """Which of the texts."""
    names = [clip("".join(t["tokens"]), 60) for t in found.texts]
    numbers = [str(i) for i in range(len(names))]
    return int(
        st.selectbox(
            "Text",
            numbers,
            format_func=lambda i: f"{int(i) + 1}: {visible(names[int(i)])}",
            width=420,
            **state.tie_choice("tx", numbers, numbers[0], clears=("tok",)),
        )
    )


def _view(entry: Entry, found: States, beside: Entry | None, text: int) -> None:
    tokens = found.texts[text]["tokens"]
    sides = [side(found, text, model_name(str(found.metadata["model"])))]
    if beside is not None:
        other = _open(str(beside.path), beside.version)
        if text < len(other.texts) and other.texts[text]["ids"] == found.texts[text]["ids"]:
            sides.append(side(other, text, model_name(str(other.metadata["model"]))))
    if len(sides) == 1:
        st.html(div("wb-head", div("sub", _missing(entry, found))))
    best = found.manifest.numbers["largest_effect"]
    of_best = best.get("text") == text
    depth = next(
        (k for k, x in enumerate(found.layers) if of_best and x["layer"] == best["layer"]), len(found.layers) // 2
    )
    deepest, last = max(len(s["layers"]) for s in sides) - 1, max(len(s["snapshots"]) for s in sides) - 1
    at = {
        "token": _given("tok", len(tokens) - 1, int(best["written"]) if of_best else 0),
        "depth": _given("dep", deepest, depth),
        "snap": _given("snap", last, last),
        "way": state.get_choice("way", WAYS, WAYS[0]),
    }
    version = "_".join([entry.version, *([beside.version] if beside is not None else [])])
    memory(message(sides, tokens, at), key=f"memory_{version}_{text}", keep=_keep)


def _given(key: str, most: int, default: int) -> int:
    """A number of the address within [0, most]."""
    found = state.get_int(key, 0, most)
    return default if found is None else found


def _keep(at: dict[str, Any]) -> None:
    """The address follows what was chosen in the browser."""
    numbers = {"tok": at.get("token"), "dep": at.get("depth"), "snap": at.get("snap")}
    way = at.get("way")
    state.put(
        **{k: v for k, v in numbers.items() if isinstance(v, int)}, way=way if way in WAYS and way != WAYS[0] else None
    )


def _missing(entry: Entry, found: States) -> str:
    """What would stand beside it, as HTML."""
    command = str(found.manifest.command or "workbench states MODEL").replace(str(found.metadata["model"]), "MODEL", 1)
    return f"Another model on the same texts stands beside it after <code>{escape(command)}</code>."


def _figure(entry: Entry, found: States, text: int) -> None:
    """One layer at one snapshot as a heat map of all pairs of tokens."""
    panels.heading("All pairs of tokens", "one layer at one snapshot")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        layers = [str(x["layer"]) for x in found.layers]
        best = str(found.manifest.numbers["largest_effect"].get("layer"))
        layer = st.selectbox(
            "Layer",
            layers,
            width=160,
            format_func=lambda i: found.layer_names[layers.index(i)],
            **state.tie_choice("lay", layers, best if best in layers else layers[-1]),
        )
        names = found.snapshot_names
        snapshot = st.selectbox(
            "Snapshot", names, width=160, format_func=visible, **state.tie_choice("rev", names, names[-1])
        )
        lives = found.of_layer(text, layers.index(str(layer)), "survival") is not None
        known = [w for w in WHAT if lives or w != "survival"]
        what = st.selectbox(
            "Quantity",
            known,
            width=300,
            format_func=lambda w: WHAT[w],
            **state.tie_choice("what", known, "share"),
        )
    chart(
        "st_pairs",
        "state_reads",
        entry,
        {"text": text, "layer": int(layer), "snapshot": names.index(snapshot), "what": what},
        height=520,
    )


body()
