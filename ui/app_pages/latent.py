"""One latent: what it means, what it does, where it fires."""

from __future__ import annotations

import random

import streamlit as st

from ui.components.enhance import enhance, latent_link
from ui.kit import data, panels, state
from ui.kit.context_bar import badges, browsable, context_bar
from ui.kit.documents import share_buttons
from ui.kit.index import Dictionary
from ui.kit.listing import add_button
from ui.kit.pins import pin_button, pin_line
from workbench.markup.charts import histogram, logit_bars
from workbench.markup.latent import VIEWS, WINDOWS, contexts_html, interesting, label_line, neighbours_html, stats_strip
from workbench.results.records import LatentRecords


def main() -> None:
    """The selectors, then the body: everything below the bar reruns alone."""
    d = context_bar(data.index())
    if d is not None:
        body()


@st.fragment(key="latent_body")
def body() -> None:
    """Anatomy of the latent the address names."""
    with panels.guarded("This latent"):
        d = state.current(data.index())
        if d is None:
            return
        records = browsable(d)
        if records is None:
            return
        latent = selected(records)
        header(d, records, latent)
        actions(d, latent)
        pin_line(d, latent)
        anatomy(d, records, latent)
        enhance(here=True)


def selected(records: LatentRecords) -> int:
    """The latent of the address, else an interesting one; the address is completed."""
    ids = records.table["latent"]
    asked = state.get("i")
    latent = state.get_int("i", int(ids.iloc[0]), int(ids.iloc[-1]))
    if asked and latent is None:
        panels.note(
            f"There is no latent <b>{panels.escape(panels.clip(asked, 40))}</b> here: "
            f"this dictionary has {len(records):,} latents, {ids.iloc[0]} to {ids.iloc[-1]}.",
            "warn",
        )
    if latent is None:
        latent = interesting(records)
    state.put(i=latent)
    return latent


def header(d: Dictionary, records: LatentRecords, latent: int) -> None:
    """Title, label and the controls that move to another latent."""
    last = int(records.table["latent"].iloc[-1])
    left, right = st.columns([5, 4], vertical_alignment="bottom")
    with left:
        st.html(
            '<div class="wb-title"><h1>Latent'
            f" {latent:,}</h1>{label_line(records.row(latent))}<div>{badges(d)}</div></div>"
        )
    with right, st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="bottom", gap="small"):
        st.button(
            "Previous",
            icon=":material/chevron_left:",
            key="wb_prev",
            shortcut="K",
            disabled=latent <= 0,
            on_click=state.choose,
            kwargs={"i": max(0, latent - 1)},
        )
        st.session_state["wb_jump"] = latent
        st.number_input(
            "Latent", 0, last, key="wb_jump", step=1, on_change=_jump, label_visibility="collapsed", width=118
        )
        st.button(
            "Next",
            icon=":material/chevron_right:",
            icon_position="right",
            key="wb_next",
            shortcut="J",
            disabled=latent >= last,
            on_click=state.choose,
            kwargs={"i": min(last, latent + 1)},
        )
        st.button(":material/casino:", key="wb_random", help="A random latent that fires", on_click=_random)


def actions(d: Dictionary, latent: int) -> None:
    """What one does with a latent: keep it, or take it to a paper."""
    with st.container(horizontal=True, gap="small"):
        pin_button(d, latent)
        add_button("Add to list", 1, lambda: [(d, latent)], what=f"Latent {latent:,}")
        if d.entry is not None and st.button(
            "Try a text",
            icon=":material/edit_note:",
            key="wb_probe",
            help="See where it fires on your own text, and steer the model with it",
        ):
            st.switch_page("app_pages/probe.py", query_params=state.link(d, i=latent))
        share_buttons(f"latents/{d.id}", {"latents": [latent]}, "wb_share")
        if st.button(
            "Export",
            icon=":material/ios_share:",
            key="wb_export",
            shortcut="E",
            help="Its contexts as a figure with data and provenance",
        ):
            st.switch_page(
                "app_pages/export.py", query_params=state.link(d, i=latent, f="latent_contexts", src=f"latents/{d.id}")
            )


def _jump() -> None:
    state.put(i=int(st.session_state["wb_jump"]))


def _random() -> None:
    d = state.current(data.index())
    records = data.records(d) if d else None
    if records is not None:
        alive = records.table.loc[records.table["n_fired"] > 0, "latent"].to_numpy()
        if len(alive):
            state.put(i=int(random.SystemRandom().choice(alive)))


def anatomy(d: Dictionary, records: LatentRecords, latent: int) -> None:
    """Statistics, histogram and logits; below them contexts beside neighbours."""
    row = records.row(latent)
    st.html(stats_strip(row, records.n_tokens))
    left, right = st.columns(2, gap="large")
    with left, panels.guarded("The histogram"):
        st.html(histogram(records.histogram(latent)))
    with right, panels.guarded("The logit effects"):
        effects = records.logits(latent)
        if effects is None:
            panels.not_computed(
                "Direct logit effect", f"workbench features {d.id}", "The records were made without the language model."
            )
        else:
            st.html(logit_bars(effects, 8))
    left, right = st.columns([5, 3], gap="large")
    with left:
        contexts(records, latent, float(row.get("max") or 0.0))
    with right:
        panels.heading("Neighbours", "decoder cosine, same dictionary")
        with panels.guarded("The neighbours"):
            near = neighbours_html(records, latent, lambda other: latent_link(d, other))
            if near is None:
                panels.not_computed("Neighbours", f"workbench features {d.id}")
            else:
                st.html(near)
        provenance(d)


def contexts(records: LatentRecords, latent: int, vmax: float) -> None:
    """Contexts by group, with the controls that change how they are shown."""
    panels.heading("Contexts", "hover a token for its value")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        view = (
            st.segmented_control(
                "Groups",
                list(VIEWS),
                required=True,
                label_visibility="collapsed",
                **state.tie_choice("g", list(VIEWS), "All"),
            )
            or "All"
        )
        width = (
            st.segmented_control(
                "Width",
                list(WINDOWS),
                required=True,
                label_visibility="collapsed",
                **state.tie_choice("w", list(WINDOWS), "±16"),
            )
            or "±16"
        )
        breaks = st.toggle("line breaks", **state.tie_flag("br"))
        more = st.toggle(
            "show more", help="20 contexts of each group instead of 5 (10 of one group)", **state.tie_flag("more")
        )
    n = 20 if more else 5 if view == "All" else 10
    with panels.guarded("The contexts"):
        st.html(contexts_html(records, latent, view, n=n, window=WINDOWS[width], breaks=breaks, vmax=vmax))


def provenance(d: Dictionary) -> None:
    """What the numbers of this page were computed from."""
    about = d.about
    rows = [
        ["dictionary", panels.escape(d.id)],
        ["hook", panels.escape(about.get("hook") or about.get("hook_name") or "–")],
        ["tokens", f"{int(about['n_tokens']):,}" if about.get("n_tokens") else "–"],
        [
            "made by",
            f"<code>{panels.escape(panels.clip((d.records.manifest.command if d.records else '') or '–', 90))}</code>",
        ],
        ["data version", f"<code>{panels.escape(d.version)}</code>"],
    ]
    with st.expander("Where these numbers come from", key="prov"):
        st.html(panels.table(["", ""], rows))


main()
