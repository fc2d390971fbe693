"""Training: when latents are born, how they grow and die, and what they read at every snapshot."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from workbench.exporting.kinds.evolution import SCALES, phase_quantities, words
from workbench.markup.glossary import meaning, term
from workbench.markup.names import listed, model_name, place
from workbench.markup.tags import div
from workbench.markup.tokens import escape, visible
from workbench.results.evolution import Evolution
from workbench_ui.components.scrubber import message, reading_table, scrubber
from workbench_ui.kit import panels, state
from workbench_ui.kit.choose import check_version, choose
from workbench_ui.kit.figures import below, chart
from workbench_ui.kit.index import Entry
from workbench_ui.views import architectures
from workbench_ui.views.evolving import open_evolution, statistics_table

COLUMNS = {
    name: (title, str(meaning(title)))
    for name, title in (
        ("latent", "latent"),
        ("emergence_0.5_step", "emerges at step"),
        ("peak_step", "peaks at step"),
        ("decay_step", "fades at step"),
        ("lifespan", "lifespan"),
        ("class", "class"),
        ("kind", "kind"),
        ("complexity", "complexity"),
        ("n_fired", "fired on"),
    )
}
TRAP = (
    "One crosscoder over one training run: the share of emergent latents and the turning point move with the"
    " crosscoder's own training; some latents have norm at step 0 whatever the model does;"
    " steps are known to one snapshot."
)
LOW_FIRST = ("latent", "class", "kind")
MOST = 12


@st.fragment(key="training_body")
def body() -> None:
    """Choice of evolution, the run as a whole, the latents, one latent."""
    with panels.guarded("The evolution"):
        panels.page_title("Training", "when latents appear, grow and fade while a model is trained")
        entry = choose(
            "evolution",
            "Evolution",
            "ev",
            what="Evolution over training",
            command="evolve mini-evolve",
            clears=("ls", "one", "step"),
        )
        if entry is None:
            return
        check_version(entry, "ev")
        e = open_evolution(str(entry.path), entry.version)
        st.html(div("wb-head", div("sub", about(entry))))
        several = len(e.lines) > 1
        panels.trap(architectures.TRAP if several else TRAP)
        whole(entry, e)
        if several and (first := architectures.which_first(entry, e)):
            state.put(ls="_".join(map(str, first[:MOST])))
        latents = population(e)
        if latents:
            compare(entry, latents)
            one(e, latents[0])
        with panels.guarded("The claims"):
            claims(entry, e)


def about(entry: Entry) -> str:
    """Whose training, where, and what was trained on it, as HTML."""
    m = entry.metadata
    if several := m.get("architectures"):
        names = listed(f"{escape(model_name(str(x['model'])))} ({len(x['sources'])} snapshots)" for x in several)
        return (
            f"<b>{names}</b> on the same text · one crosscoder (<code>{escape(str(m.get('dictionary') or entry.id))}"
            f"</code>): its {term('latent', 'latents')} are shared by all of them"
        )
    model, site = escape(model_name(str(m.get("model") or "?"))), str(m.get("site") or "")
    where = escape(place(site)) if site else "several places"
    return (
        f"<b>{model}</b>, {where} · one crosscoder (<code>{escape(str(m.get('dictionary') or entry.id))}</code>) over"
        f" {len(m.get('sources') or ())} snapshots: its {term('latent', 'latents')} are shared by all of them and have"
        " numbers of their own"
    )


def whole(entry: Entry, e: Evolution) -> None:
    """What the run looks like: numbers, and a quantity of every snapshot."""
    counts = e.table["class"].value_counts() if "class" in e.table else pd.Series(dtype=int)
    alive = int(e.table["alive"].sum()) if "alive" in e.table else len(e.table)
    items = [
        ("Latents", f"{len(e):,}", f"{alive:,} alive"),
        ("Snapshots", f"{len(e.steps)}", f"step {int(e.steps.min()):,} to {int(e.steps.max()):,}"),
    ]
    items += [
        (f"Class: {visible(str(k))}", f"{int(v):,}", f"{100 * v / max(1, len(e)):.1f} % of latents")
        for k, v in counts.head(5).items()
    ]
    st.html(panels.stats(items))
    quantities = phase_quantities(e.phases) if e.phases is not None else []
    if quantities:
        panels.heading("The run", "one value per snapshot")
        name = st.selectbox(
            "Quantity",
            quantities,
            label_visibility="collapsed",
            width=300,
            format_func=lambda q: visible(words(q)),
            **state.tie_choice("phase", quantities, quantities[0]),
        )
        chart("tr_phase_chart", "evolution_phases", entry, {"quantities": [name]}, height=240)


def population(e: Evolution) -> list[int]:
    """The table of latents; chosen rows are compared."""
    panels.heading("Latents", "choose up to twelve rows; their decoder norms are drawn below")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        kinds = sorted(str(k) for k in e.table["class"].dropna().unique()) if "class" in e.table else []
        wanted = (
            st.pills(
                "Class",
                kinds,
                selection_mode="multi",
                label_visibility="collapsed",
                **state.tie_many("class", kinds, kinds),
            )
            or kinds
            if kinds
            else []
        )
        known = [c for c in COLUMNS if c in e.table]
        orders = sorted(known, key=lambda c: c == "latent")
        order = st.selectbox(
            "Sort by",
            orders,
            width=240,
            format_func=lambda c: COLUMNS[c][0],
            **state.tie_choice("sort", orders, orders[0]),
        )
        turned = st.toggle("the other way round", **state.tie_flag("turned"))
    frame = e.table
    if kinds:
        frame = frame[frame["class"].astype(str).isin(wanted)]
    frame = frame.sort_values(order, ascending=(order in LOW_FIRST) != turned, kind="stable", na_position="last").head(
        500
    )
    norms = e.norms(frame["latent"].to_numpy()) if len(frame) else None
    view = frame[known].copy()
    if norms is not None:
        view.insert(1, "norm over training", [np.round(r, 4).tolist() for r in norms])
    event = st.dataframe(
        view,
        key="tr_table",
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        lazy=False,
        placeholder="–",
        height=330,
        alt="Latents with emergence, peak and class",
        column_config={
            "norm over training": st.column_config.LineChartColumn(
                "norm over training" if len(e.lines) == 1 else "norm, one training after the other", width=150
            ),
            **{c: st.column_config.Column(COLUMNS[c][0], help=COLUMNS[c][1]) for c in known},
        },
    )
    rows = [int(frame.iloc[r]["latent"]) for r in event.selection.rows if r < len(frame)]
    if rows:
        state.put(ls="_".join(str(r) for r in rows[:MOST]))
        return rows[:MOST]
    asked = [int(x) for x in (state.get("ls") or "").split("_") if x.isdecimal() and int(x) < len(e)][:MOST]
    return asked or [int(v) for v in frame["latent"].head(3)]


def compare(entry: Entry, latents: list[int]) -> None:
    """Norm curves of the chosen latents."""
    panels.heading("Decoder norms", "how much of each snapshot's activations a latent writes")
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        kind = st.segmented_control(
            "Scale",
            list(SCALES),
            required=True,
            format_func=lambda k: SCALES[k],
            label_visibility="collapsed",
            **state.tie_choice("scale", list(SCALES), "training"),
        )
        relative = st.toggle("each relative to its peak", **state.tie_flag("rel"))
        steps = st.toggle("log steps", **state.tie_flag("log", True))
    options = {"latents": latents, "kind": kind or "training", "relative": relative, "log_steps": steps}
    chart("tr_curves", "evolution_norms", entry, options, later=True)


def one(e: Evolution, first: int) -> None:
    """The scrubber: one latent's contexts at every snapshot."""
    panels.heading("What it reads", "the same contexts at every snapshot; drag, or press play")
    latent = int(
        st.number_input("Latent", 0, len(e) - 1, step=1, width=150, **state.tie_number("one", 0, len(e) - 1, first))
    )
    contexts = e.contexts(latent)
    if contexts is None:
        panels.not_computed("Contexts at every snapshot", "workbench evolve")
        return
    if not contexts:
        panels.note("This latent never fired on the held-out tokens.")
        return
    names = e.snapshot_names
    norms = e.norms([latent])
    scrubber(
        message(
            contexts,
            names,
            norms[0] if norms is not None else np.zeros(len(names)),
            start=state.get_int("step", 0, len(names) - 1),
        ),
        key=f"scrub_{e.version}_{latent}",
        keep=lambda s: state.put(step=s),
    )
    below("tr_scrub", reading_table(contexts, names), ("token",))


def claims(entry: Entry, e: Evolution) -> None:
    """Statistics with interval and null."""
    if e.statistics is not None and len(e.statistics):
        panels.heading("Claims", "each with its 95 % interval and its null")
        st.html(statistics_table(e.statistics))
        below("tr_claims", e.statistics, ("claim",), figure="evolution_claims", source=f"evolution/{entry.id}")


body()
