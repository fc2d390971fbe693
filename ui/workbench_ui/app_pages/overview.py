"""The front door: what can be seen here, on the workspace's own data; what it holds and what is missing, folded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from workbench.markup.glossary import badge, term
from workbench.markup.tags import div, span
from workbench.markup.tokens import cell, escape, number, visible
from workbench_ui.components.enhance import page_link
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.index import Dictionary, Entry, Index, architecture_css
from workbench_ui.kit.rows import Column, link_table
from workbench_ui.views.front import (
    being_born,
    card,
    found_in,
    hero,
    in_both,
    one_latent,
    people,
    the_papers,
    tour,
    who_copies,
)
from workbench_ui.views.missing import gaps

FULL = 400  # characters of a text that go into the address of the probe


@st.fragment(key="overview_body")
def body() -> None:
    """The question, six cards, a search, three entries; the inventory below, folded."""
    with panels.guarded("The overview"):
        index = data.index()
        panels.page_title("What has a language model learnt?", opening(index))
        with panels.guarded("The cards"):
            cards(index)
        with panels.guarded("The search"):
            search(index)
        if not index.dictionaries:
            missing(index)
        else:
            inventory(index)
        for what, why in index.problems:
            panels.problem(f"{what} cannot be read", why)


def opening(index: Index) -> str:
    """What this is about, in one sentence each, with the words explained where they stand."""
    found = people(index)
    n = len(found["models"])
    here = f"This workspace, <b>{escape(index.root.name)}</b>, holds no dictionary yet."
    if n:
        models = f"{n} model{'s' if n > 1 else ''}" if n else "no model"
        here = (
            f"This workspace, <b>{escape(index.root.name)}</b>, holds {len(index.dictionaries)} of them for {models}."
        )
    compared = bool(found["transformers"] and found["mambas"])
    does = ["Transformers are compared with " + term("Mamba", "Mambas")] if compared else []
    does += ["models are followed through their training"] if index.of("evolution") else []
    shown = f"Here {' and '.join(does)}. " if does else ""
    return (
        f"{'And does another architecture learn the same? ' if compared else ''}"
        f"A {term('dictionary')} splits a model's inner state into some thousand {term('latent', 'latents')}, each"
        f" meant to stand for one thing. {shown}{here}"
    )


def cards(index: Index) -> None:
    """Six live cards in two rows; the fifth is a box for a text of one's own."""
    first = hero(index)
    d = index.dictionaries.get(first.dictionary) if first else None
    latent = first.latent if first else 0
    pieces: list[Callable[[], str] | None] = [
        lambda: one_latent(index, d, latent),
        lambda: in_both(index, d, latent),
        lambda: being_born(index),
        lambda: who_copies(index),
        None,
        lambda: the_papers(index),
    ]
    for row in (pieces[:3], pieces[3:]):
        for column, piece in zip(st.columns(3, gap="small"), row, strict=True):
            with column, st.container(border=True, height="stretch"), panels.guarded("This card"):
                if piece is None:
                    own_text(index)
                else:
                    st.html(piece())


def own_text(index: Index) -> None:
    """Card 5: a text of one's own, token by token in both models."""
    able = bool(index.of("dictionaries"))
    beside = ", in both models side by side" if len(people(index)["models"]) > 1 else ""
    st.html(card(5, "Your own text", div("d", f"Click a word and see what fires there{beside}.")))
    text = st.text_input(
        "Your own text",
        key="ov_text",
        max_chars=FULL,
        placeholder="def write(self, path):",
        label_visibility="collapsed",
        disabled=not able,
    )
    if st.button("Read it", icon=":material/play_arrow:", key="ov_read", disabled=not able) or text:
        st.switch_page("app_pages/probe.py", query_params={"text": text or EXAMPLE})


EXAMPLE = "def write(self, path):\n    with open(path) as f:\n        return f.read()\n"


def search(index: Index) -> None:
    """One box over all dictionaries, and three ways in."""
    if not any(d.records for d in index.dictionaries.values()):
        return
    left, right = st.columns([3, 2], vertical_alignment="bottom", gap="large")
    with left:
        n = sum(d.records is not None for d in index.dictionaries.values())
        text = st.text_input(
            f"Look for a word, a token or a label in all {n} dictionaries",
            type="search",
            live=True,
            max_chars=100,
            placeholder="import, def, inside brackets …",
            **state.tie_text("find", 100),
        )
    with right:
        st.html(
            div(
                "wb-ways",
                page_link("latents", "I know SAEs: the table →"),
                page_link("export", "I need a figure: the gallery →", {"view": "all figures"}),
            )
        )
    if (text or "").strip():
        st.html(found_in(index, str(text).strip()))
    first = hero(index)
    d = index.dictionaries.get(first.dictionary) if first else None
    with st.expander("I am new here: a tour of five minutes", icon=":material/explore:", key="ov_tour"):
        st.html(tour(index, d, first.latent if first else 0))


def inventory(index: Index) -> None:
    """What there is and what is not there yet, folded."""
    n = len(index.dictionaries)
    narrowed = any(state.get(key) for key in ("arch", "sites", "snap", "browsable"))  # a link shows what it says
    with st.expander(f"All {n} dictionaries", key="ov_dictionaries", expanded=narrowed):
        dictionaries(index)
    models, stores = len(index.of("models")), len(index.of("stores"))
    if models or stores:
        named = " and ".join(
            f"{k} {one if k == 1 else many}"
            for k, one, many in ((models, "model", "models"), (stores, "activation store", "activation stores"))
            if k
        )
        with st.expander(named, key="ov_models"):
            models_and_stores(index)
    found = gaps(index)
    if found:
        with st.expander(f"{len(found)} results one could still make, with their commands", key="ov_missing"):
            missing(index)


def dictionaries(index: Index) -> None:
    """The table of dictionaries with their numbers; a row opens its latents."""
    shown = filtered(list(index.dictionaries.values()))
    if not shown:
        panels.note("No dictionary fits. Choose more above.")
        return
    frame = table_of(shown)
    known = [(name, c) for name, c in COLUMNS if name in frame]
    rows = [
        [_cell(d, name, row[name]) for name, _ in known] for d, row in zip(shown, frame.to_dict("records"), strict=True)
    ]
    st.html(link_table([c for _, c in known], rows, label=f"{len(shown)} dictionaries with their numbers"))


COLUMNS = (
    (
        "dictionary",
        Column("dictionary", "Kind, and latents per dimension of the model's state; the row opens its latents"),
    ),
    ("model", Column("model")),
    ("architecture", Column("architecture")),
    ("site", Column("site")),
    ("snapshot", Column("snapshot")),
    ("latents", Column("latents", "How many", True)),
    ("explained", Column("explained variance", "", True)),
    ("L0", Column("active per token (L0)", "", True)),
    ("dead", Column("dead %", "", True)),
    ("loss", Column("Δ loss", "", True)),
    ("recovered", Column("loss recovered", "", True)),
    ("records", Column("can be browsed")),
)


def _cell(d: Dictionary, name: str, value: Any) -> str:
    if name == "dictionary":
        return page_link("latents", escape(str(value)), state.link(d))
    if value is None or value != value:
        return "–"
    return number(float(value)) if isinstance(value, int | float) else escape(str(value))


def filtered(shown: list[Dictionary]) -> list[Dictionary]:
    """By architecture, kind of site, snapshot, and whether the latents can be browsed; a filter that could not choose
    stays away.
    """
    filters: list[tuple[str, str, Callable[[Dictionary], str]]] = [
        ("arch", "Architecture", lambda d: d.architecture),
        ("sites", "Site", lambda d: d.place.partition(", ")[2] or "elsewhere"),
        ("snap", "Snapshot", lambda d: d.revision),
    ]
    everything = shown
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        for key, name, of in filters:
            kinds = list(dict.fromkeys(map(of, everything)))
            if len(kinds) > 1:
                wanted = st.pills(
                    name,
                    kinds,
                    selection_mode="multi",
                    label_visibility="collapsed",
                    format_func=visible,
                    **state.tie_many(key, kinds, kinds),
                )
                shown = [d for d in shown if of(d) in (wanted or kinds)]
        some = len(everything) > 12 and len({d.records is None for d in everything}) > 1
        if some and st.toggle("only with latents", **state.tie_flag("browsable")):
            shown = [d for d in shown if d.records is not None]
    return shown


def table_of(shown: list[Dictionary]) -> pd.DataFrame:
    """One row per dictionary; what only some have (an evaluation) before the data version."""
    frame = pd.DataFrame([dictionary_row(d) for d in shown])
    last = [c for c in ("records", "version") if c in frame]
    return frame[[*(c for c in frame.columns if c not in last), *last]]


def dictionary_row(d: Dictionary) -> dict[str, Any]:
    """One dictionary as table cells; absent numbers stay absent."""
    n = d.numbers
    dead = _value(n, "dead_share", "dead_fraction")
    return {
        "model": cell(d.model),
        "architecture": d.architecture,
        "site": f"{d.site} · {d.place}" if d.site else "–",
        "snapshot": cell(d.revision),
        "dictionary": d.variant,
        "latents": _value(n, "d_sae", "n_latents", "latents"),
        "explained": _value(n, "explained_variance"),
        "L0": _value(n, "l0"),
        "dead": None if dead is None else 100 * dead,
        **evaluated(d),
        "records": "yes" if d.records else "not computed",
        "version": d.version,
    }


def evaluated(d: Dictionary) -> dict[str, float | None]:
    """What an evaluation inside the model found; nothing where there is none."""
    if d.evaluation is None:
        return {}
    return {
        "loss": _value(d.evaluation.numbers, "delta_ce"),
        "recovered": _value(d.evaluation.numbers, "ce_recovered_zero"),
    }


def _value(numbers: dict[str, Any], *names: str) -> float | None:
    """The first of these numbers that exists; a number may be given with its n as ``{"value": …, "n": …}``."""
    for name in names:
        value = numbers.get(name)
        value = value.get("value") if isinstance(value, dict) else value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def models_and_stores(index: Index) -> None:
    """Models and stores as cards."""
    if index.of("models"):
        panels.heading("Models")
        st.html(f'<div class="wb-cards">{"".join(model_card(index, e) for e in index.of("models"))}</div>')
    if index.of("stores"):
        panels.heading("Activation stores")
        st.html(f'<div class="wb-cards">{"".join(store_card(e) for e in index.of("stores"))}</div>')


def model_card(index: Index, e: Entry) -> str:
    """One model: architecture, size, loss, snapshots."""
    architecture = index.architecture(e.id)
    facts = []
    snapshots = e.metadata.get("revisions")
    named = isinstance(snapshots, list) and bool(snapshots)
    quantities = [("parameters", "parameters"), ("loss", "final loss"), ("tokens", "tokens trained")]
    for name, unit in quantities if named else [*quantities, ("snapshots", "snapshots")]:
        value = _value(e.numbers, name)
        if value is not None:
            facts.append(f"<b>{number(value)}</b> {unit}")
    if isinstance(snapshots, list) and snapshots:
        facts.append(f"<b>{len(snapshots)}</b> snapshots, {escape(snapshots[0])} to {escape(snapshots[-1])}")
    trained = sum(d.model == e.id for d in index.dictionaries.values())
    if trained:
        facts.append(f"<b>{trained}</b> dictionaries")
    css = architecture_css(architecture)
    title = div("k", span("", escape(e.id)), badge("architecture", architecture, css))
    return div("wb-card", title, div("d", " · ".join(facts) or "no numbers recorded"))


def store_card(e: Entry) -> str:
    """One activation store: rows, shards, size."""
    facts = []
    for names, unit in (
        (("rows", "n_rows"), "rows"),
        (("shards", "n_shards"), "shards"),
        (("ctx",), "tokens per sequence"),
    ):
        value = _value(e.numbers, *names)
        if value is not None:
            facts.append(f"<b>{number(value)}</b> {unit}")
    size = _value(e.numbers, "bytes")
    if size is not None:
        facts.append(f"<b>{size / 2**20:,.0f}</b> MiB")
    title = div("k", span("", escape(e.id)), badge("data version", escape(e.version), "v"))
    return div("wb-card", title, div("d", " · ".join(facts) or "sealed"))


def missing(index: Index) -> None:
    """What does not exist yet and the command that makes it."""
    found = gaps(index)
    if not found:
        return
    panels.heading(
        "Not computed yet", "paste a command into a terminal; this page shows the result as soon as it is there"
    )
    for gap in found:
        panels.not_computed(gap.what, gap.command, gap.why)


body()
