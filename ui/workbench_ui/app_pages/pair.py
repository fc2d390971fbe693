"""Two latents of different models on the same tokens."""

from __future__ import annotations

from typing import Any

import streamlit as st

from sae.errors import UsageError
from workbench.exporting.figures import Panel
from workbench.markup.charts import histogram, legend, logit_bars
from workbench.markup.latent import label_line
from workbench.markup.tags import div
from workbench.markup.tokens import escape, visible
from workbench.results.matches import SHIFTS, STRIP, TRAP, MatchRecords
from workbench_ui.components.aligned import aligned, chosen_shift, message
from workbench_ui.components.enhance import enhance, latent_link
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version
from workbench_ui.kit.context_bar import badges
from workbench_ui.kit.figures import below, drawn
from workbench_ui.kit.index import Entry
from workbench_ui.kit.matching import chosen, joint_html, pair_stats, partner_of
from workbench_ui.kit.thread import bar, last, remember
from workbench_ui.views import transplants

BY = {"both": "both", "A": "a", "B": "b"}


@st.fragment(key="pair_body")
def body() -> None:
    """Selectors, statistics, aligned strips, and both anatomies beside each other."""
    with panels.guarded("The pair"):
        thread = st.container()  # drawn with every pair, after the page knows which
        panels.page_title("Pair", "two latents on the same tokens: colour is A, underline is B")
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            found = chosen(width=250)
            if found is None:
                return
            entry, m = found
            a, i, b, j = selected(m)
            selectors(m, a, i, b, j)
        with thread, panels.guarded("The bar of latents"):
            bar()
        check_version(entry, "m")
        key = f"px_strips_{m.version}_{a}_{i}_{b}_{j}"
        shift = shift_of(key)
        pair = m.pair(a, i, b, j, shift=shift)
        st.html(pair_stats(pair, f"{a} #{i}", f"{b} #{j}"))
        panels.trap(escape(TRAP))
        left, right = st.columns([5, 2], gap="large")
        with left:
            joint = strips(entry, m, a, i, b, j, key, pair.maxima)
        with right:
            panels.heading("Joint activations", "tokens by both activations, log counts; at the edges one is silent")
            st.html(joint_html(joint, pair))
        with panels.guarded("The transplant"):
            transplants.of_pair(m, a, i, b, j)
        for column, dictionary, latent, tag in zip(st.columns(2, gap="large"), (a, b), (i, j), "AB", strict=True):
            with column, panels.guarded(f"Latent {tag}"):
                side(dictionary, latent, tag)
        enhance("pair_enhance")


def selected(m: MatchRecords) -> tuple[str, int, str, int]:
    """Both latents of the address, completed: A from the best pair, B as A's best partner."""
    known = [*m.metadata["a"]["dictionaries"], *m.metadata["b"]["dictionaries"]]
    a, i = state.get("d"), state.get_int("i", 0, 10**9)
    if a is None or a not in known or i is None:
        at_hand = last(data.index())
        if at_hand is not None and at_hand[0].id in known:
            a, i = at_hand[0].id, at_hand[1]
            state.put(d2=None, i2=None)
    if a is None or a not in known or i is None:
        top = m.best[m.best["direction"] == "ab"].sort_values("r", ascending=False).iloc[0]
        a, i = str(top["dictionary"]), int(top["latent"])
        state.put(d2=None, i2=None)
    b, j = state.get("d2"), state.get_int("i2", 0, 10**9)
    if b is None or b not in known or j is None:
        best = partner_of(m, a, i)
        others = m.metadata["b" if a in m.metadata["a"]["dictionaries"] else "a"]["dictionaries"]
        b, j = (str(best["partner_dictionary"]), int(best["partner"])) if best else (others[0], 0)
    state.put(d=a, i=i, d2=b, i2=j)
    d = data.index().dictionaries.get(a)
    if d is not None:
        remember(d, i)
    return a, i, b, j


def selectors(m: MatchRecords, a: str, i: int, b: str, j: int) -> None:
    """Dictionary and number of both latents, swap, and A's best partner."""
    known = [*m.metadata["a"]["dictionaries"], *m.metadata["b"]["dictionaries"]]
    for tag, dictionary, latent, keys in (("A", a, i, ("d", "i")), ("B", b, j, ("d2", "i2"))):
        st.session_state[f"px_d{tag}"], st.session_state[f"px_i{tag}"] = dictionary, latent
        st.selectbox(
            tag, known, key=f"px_d{tag}", format_func=visible, on_change=_take, args=(f"px_d{tag}", keys[0]), width=190
        )
        st.number_input(
            f"Latent {tag}", 0, None, key=f"px_i{tag}", step=1, on_change=_take, args=(f"px_i{tag}", keys[1]), width=112
        )
    st.button(
        "Swap",
        icon=":material/swap_horiz:",
        key="px_swap",
        on_click=state.put,
        kwargs={"d": b, "i": j, "d2": a, "i2": i},
    )
    st.button(
        "Best partner of A", icon=":material/link:", key="px_best", on_click=state.put, kwargs={"d2": None, "i2": None}
    )


def _take(widget: str, key: str) -> None:
    state.put(**{key: st.session_state[widget]})


def strips(
    entry: Entry, m: MatchRecords, a: str, i: int, b: str, j: int, key: str, maxima: tuple[float, float]
) -> Panel:
    """The same text for both: colour for A, underline for B; hover and the shift need no server. Returns the joint
    histogram's panel, which is of the same figure.
    """
    panels.heading("The same tokens", "hover a token for both values and its place in the joint histogram")
    by = (
        st.segmented_control("Strongest of", list(BY), required=True, **state.tie_choice("by", list(BY), "both"))
        or "both"
    )
    options: dict[str, Any] = {"dictionary": a, "latent": i, "partner_dictionary": b, "partner": j, "by": BY[by]}
    shift = shift_of(key)
    if shift:
        options["shift"] = shift
    made = drawn("pair", entry, options)
    strips_panel, joint = made.panels
    if strips_panel.frame.empty:
        panels.note("The two never fire on the same token. Choose the strongest of A or of B above.")
    else:
        found = m.strips(a, i, b, j, by=BY[by], n=12, width=STRIP)
        tops = strips_panel.top or 1.0, strips_panel.under_top or 1.0
        st.html(
            legend(
                tops[0],
                "colour: A, from 0 to its largest here · underline: B, in three thicknesses · outlined: the token the"
                " text was chosen for · left: sequence:position",
            )
        )
        aligned(
            message(found, tops, maxima, m.tokens.shape[1], shift=shift),
            key=key,
            keep=lambda s: state.put(shift=s or None),
        )
    below("px", made, figure="pair", source=f"matches/{m.id}", options=options)
    return joint


def shift_of(key: str) -> int:
    """By how many tokens B is read later: what was chosen on this page, else what the address says."""
    asked = state.get_int("shift", min(SHIFTS), max(SHIFTS), 0) or 0
    return asked if "shift" in st.query_params else chosen_shift(key)


def side(dictionary: str, latent: int, tag: str) -> None:
    """One latent's own histogram and logits, where its records exist."""
    d = data.index().dictionaries.get(dictionary)
    if d is None:
        panels.problem(dictionary, "This dictionary is not in the workspace any more.")
        return
    records = data.records(d)
    if records is None:
        st.html(div("wb-head", f"<h2>{tag} · {escape(dictionary)} #{latent}</h2>", div("sub", badges(d))))
        panels.not_computed(f"Latents of {dictionary}", f"workbench features {dictionary}")
        return
    try:
        row: dict[str, Any] = records.row(latent)
    except UsageError as e:
        panels.problem(f"Latent {latent}", str(e))
        return
    st.html(
        div(
            "wb-head",
            f"<h2>{tag} · {latent_link(d, latent, f'latent {latent:,}')}</h2>",
            div("sub", label_line(row) + badges(d)),
        )
    )
    st.html(histogram(records.histogram(latent)))
    effects = records.logits(latent)
    if effects is not None:
        st.html(logit_bars(effects, 6))


body()
