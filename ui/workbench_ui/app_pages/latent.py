"""One latent: what it means, what it does, where it fires."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import streamlit as st

from workbench.markup.charts import histogram, logit_bars
from workbench.markup.latent import VIEWS, WINDOWS, contexts_html, label_line, neighbours_html, stats_strip
from workbench.markup.tags import div
from workbench.markup.tokens import escape, number, strip
from workbench.results.characters import cells_of
from workbench.results.records import LatentRecords
from workbench_ui.components.enhance import enhance, latent_link
from workbench_ui.components.walk import walk
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.context_bar import badges, browsable, context_bar
from workbench_ui.kit.documents import share_buttons
from workbench_ui.kit.index import Dictionary
from workbench_ui.kit.listing import add_button, again_button
from workbench_ui.kit.probing import run_probe
from workbench_ui.kit.thread import bar, last_of, pin_button, remember
from workbench_ui.views.evidence import evidence
from workbench_ui.views.latent_table import Query, of_address, select_of
from workbench_ui.views.lives import lives
from workbench_ui.views.scored import scored

TEXT = 400  # characters that fit into the address
CONTEXTS = "wb_contexts"  # the container of the contexts, which J and K fill beforehand


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
        latent = selected(d, records)
        remember(d, latent)
        order, name = order_of(d, records)
        bar()
        header(d, records, latent, order, name)
        actions(d, latent)
        with panels.guarded("What else is known of it"):
            st.html(lives(d, latent))
        shown = anatomy(d, records, latent)
        enhance(here=True)
        walk(order, latent, f"{d.id} {d.key} {name}", lambda other: _contexts(shown, other), CONTEXTS)


def order_of(d: Dictionary, records: LatentRecords) -> tuple[np.ndarray, str]:
    """The latents in the order in which J and K walk, and what that order is called: the filter or list the address
    names, else all by number.
    """
    asked, name = of_address(d)
    if asked is None:
        return records.table["latent"].to_numpy(), ""
    found = select_of(d, asked)
    return (found, name) if len(found) else (records.table["latent"].to_numpy(), "")


def selected(d: Dictionary, records: LatentRecords) -> int:
    """The latent of the address, else the one looked at last, else the most interesting; the address is completed."""
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
        known = last_of(d)
        latent = known if known is not None and known < len(records) else int(select_of(d, Query(alive=False))[0])
    state.put(i=latent)
    return latent


def header(d: Dictionary, records: LatentRecords, latent: int, order: np.ndarray, name: str) -> None:
    """Title, label and the controls that move to another latent."""
    last = int(records.table["latent"].iloc[-1])
    at = np.flatnonzero(order == latent)
    place = int(at[0]) if len(at) else -1
    walked = div("sub", f"{place + 1:,} of {len(order):,} {escape(name)}") if name and place >= 0 else ""
    left, right = st.columns([5, 4], vertical_alignment="bottom")
    with left:
        st.html(
            '<div class="wb-title"><h1>Latent'
            f" {latent:,}</h1>{label_line(records.row(latent))}<div>{badges(d)}</div>{walked}</div>"
        )
    with right, st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="bottom", gap="small"):
        st.button(
            "Previous",
            icon=":material/chevron_left:",
            key="wb_prev",
            shortcut="K",
            disabled=place == 0,
            on_click=state.choose,
            kwargs={"i": int(order[max(0, place - 1)])},
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
            disabled=place == len(order) - 1,
            on_click=state.choose,
            kwargs={"i": int(order[min(len(order) - 1, place + 1)])},
        )
        st.button(":material/casino:", key="wb_random", help="A random latent that fires", on_click=_random)


def actions(d: Dictionary, latent: int) -> None:
    """What one does with a latent: keep it, or take it to a paper."""
    with st.container(horizontal=True, gap="small"):
        pin_button(d, latent)
        add_button("Add to list", 1, lambda: [(d, latent)], what=f"Latent {latent:,}")
        again_button(lambda: [(d, latent)], what=f"Latent {latent:,}")
        if d.entry is not None and st.button(
            "Steer with it",
            icon=":material/edit_note:",
            key="wb_probe",
            help="Read a text in two models, and push the model along this latent",
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


def anatomy(d: Dictionary, records: LatentRecords, latent: int) -> Shown:
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
        with panels.guarded("Your text"):
            own_text(d, latent, float(row.get("max") or 0.0))
        shown = contexts(d, records, latent)
    with right:
        with panels.guarded("The evidence"):
            evidence(d, latent)
        with panels.guarded("The scores of its label"):
            scored(d, latent, labelled=isinstance(row.get("label"), str))
        with st.container(key="wb_beside"):  # goes along while one reads the contexts
            panels.heading("Neighbours", "decoder cosine, same dictionary")
            with panels.guarded("The neighbours"):
                near = neighbours_html(records, latent, lambda other: latent_link(d, other))
                if near is None:
                    panels.not_computed("Neighbours", f"workbench features {d.id}")
                else:
                    st.html(near)
            provenance(d)
    return shown


def own_text(d: Dictionary, latent: int, vmax: float) -> None:
    """Where the latent fires on a text of the reader's own, right here."""
    if d.entry is None:
        return
    text = st.text_input(
        "Try it on a text of your own",
        max_chars=TEXT,
        placeholder="type or paste, Enter reads it; the first time loads the language model",
        **state.tie_text("t", TEXT),
    )
    if not (text or "").strip():
        return
    found = run_probe(d, str(text)).probe
    acts = found.activations(latent)
    top = max(acts, default=0.0)
    cells = cells_of(found.tokens, str(text))
    merged = [max(acts[t] for t in places) for _, places in cells]
    row = strip([w for w, _ in cells], merged, max(vmax, top), peak=merged.index(top) if top > 0 else None)
    share = f" · {100 * top / vmax:.0f} % of its largest" if vmax and top > 0 else ""
    st.html(div("wb-ctxs", div("m", f"<b>{number(top) if top > 0 else 'silent'}</b>your text{share}"), div("c", row)))
    if found.cut:
        panels.note(
            f"The text is longer than the model reads: its last {found.cut:,} characters were left out.", "warn"
        )


def contexts(d: Dictionary, records: LatentRecords, latent: int) -> Shown:
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
    shown = Shown(d.id, d.key, data.results_key(), view, 20 if more else 5 if view == "All" else 10, width, breaks)
    with panels.guarded("The contexts"), st.container(key=CONTEXTS):
        st.html(_contexts(shown, latent))
    return shown


@dataclass(frozen=True)
class Shown:
    """Of which dictionary contexts are shown, as of which data, and how."""

    dictionary: str
    key: str
    results: str
    view: str
    n: int
    width: str
    breaks: bool


@st.cache_resource(show_spinner=False, max_entries=64)
def _contexts(shown: Shown, latent: int) -> str:
    """The contexts of one latent as HTML, kept: that of the neighbours is asked for before one walks there."""
    d = data.index().dictionaries[shown.dictionary]
    records = data.records(d)
    assert records is not None
    kinds = data.sequence_kinds(d)
    return contexts_html(
        records,
        latent,
        shown.view,
        n=shown.n,
        window=WINDOWS[shown.width],
        breaks=shown.breaks,
        vmax=float(records.row(latent).get("max") or 0.0),
        kinds=kinds.tolist() if kinds is not None else None,
    )


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
