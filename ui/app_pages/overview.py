"""What this workspace holds, what is missing, and which command makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from ui.kit import data, panels, state
from ui.kit.index import Dictionary, Entry, Index
from ui.kit.pages import PAGES
from ui.views.missing import gaps
from workbench.markup.tags import div, span
from workbench.markup.tokens import cell, escape, number, visible

FLOW = (
    ("models", "model", "models"),
    ("stores", "store", "stores"),
    ("dictionaries", "dictionary", "dictionaries"),
    ("latents", "with latents", "with latents"),
    ("matches", "comparison", "comparisons"),
    ("evolution", "evolution", "evolutions"),
    ("circuits", "circuit", "circuits"),
    ("graphs", "graph", "graphs"),
    ("claims", "finding", "findings"),
    ("exports", "export", "exports"),
)
QUESTIONS = (
    ("latent", "What does a latent fire on?"),
    ("mppc", "Which latents exist in both architectures?"),
    ("training", "When do latents emerge?"),
    ("induction", "How does induction work?"),
    ("probe", "What fires on my text?"),
    ("results", "Do the papers’ findings hold?"),
)


@st.fragment(key="overview_body")
def body() -> None:
    """Everything on one page."""
    with panels.guarded("The overview"):
        index = data.index()
        panels.page_title(
            index.root.name, "workspace · what Transformers and Mambas learn: features, their twins, their history"
        )
        st.html(flow(index))
        ways(index)
        if index.dictionaries:
            panels.heading("Dictionaries", "choose a row to see its latents")
            dictionaries(index)
        left, right = st.columns([3, 2], gap="large")
        with left:
            models_and_stores(index)
        with right:
            missing(index)
        for what, why in index.problems:
            panels.problem(f"{what} cannot be read", why)


def flow(index: Index) -> str:
    """How many of everything there is, in the order in which it is made."""
    cards = []
    for kind, one, many in FLOW:
        n = len(index.of(kind))
        cards.append(div("f" if n else "f none", div("v", f"{n or '–'}"), div("k", one if n == 1 else many)))
    return div("wb-flow", *cards)


def ways(index: Index) -> None:
    """Where to go from here: one link per question this workspace can answer."""
    shown = {p.stem: p for p in PAGES if p.shown(index)}
    with st.container(horizontal=True, gap="small", key="wb_ways"):
        for stem, question in QUESTIONS:
            if stem in shown:
                st.page_link(
                    f"app_pages/{stem}.py", label=question, icon=f":material/{shown[stem].icon}:", width="content"
                )


def dictionaries(index: Index) -> None:
    """The table of dictionaries with their numbers; a row opens its latents."""
    shown = filtered(list(index.dictionaries.values()))
    c = st.column_config
    if not shown:
        panels.note("No dictionary fits. Choose more above.")
        return
    event = st.dataframe(
        table_of(shown),
        key="dictionaries",
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        lazy=False,
        placeholder="–",
        height="content" if len(shown) <= 14 else 520,
        alt=f"{len(shown)} dictionaries with their numbers",
        column_config={
            "explained": c.ProgressColumn(
                "explained variance", min_value=0.0, max_value=1.0, format="%.3f", help="Centred, on held-out rows"
            ),
            "dead": c.NumberColumn("dead %", format="%.2f", help="Latents that never fired"),
            "L0": c.NumberColumn("L0", format="%.1f", help="Latents active per token"),
            "latents": c.NumberColumn("latents", format="localized"),
            "loss": c.NumberColumn(
                "Δ loss", format="%.3f", help="Cross-entropy with the reconstruction minus without, nats per token"
            ),
            "recovered": c.NumberColumn("loss recovered", format="%.3f", help="Of the loss that zero-ablation costs"),
            "records": c.TextColumn("latents shown", help="Whether its latents can be browsed"),
            "version": c.TextColumn("data version"),
        },
    )
    picked = event.selection.rows
    if picked and picked[0] < len(shown):
        st.switch_page("app_pages/latents.py", query_params=state.link(shown[picked[0]]))


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
    css = "m" if architecture == "Mamba" else "t"
    title = div("k", span("", escape(e.id)), span(f"wb-badge {css}", architecture))
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
    title = div("k", span("", escape(e.id)), span("wb-badge v", escape(e.version)))
    return div("wb-card", title, div("d", " · ".join(facts) or "sealed"))


def missing(index: Index) -> None:
    """What does not exist yet and the command that makes it."""
    found = gaps(index)
    if not found:
        return
    panels.heading("Not computed yet", "run in a terminal; this page notices")
    for gap in found:
        panels.not_computed(gap.what, gap.command, gap.why)


body()
