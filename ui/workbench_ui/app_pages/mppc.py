"""MPPC: how well the latents of one model are found again in another, beside everything they should be judged by."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from workbench.exporting.kinds.universality import SHOWN
from workbench.markup.glossary import TERMS, meaning
from workbench.markup.tags import div, span
from workbench.markup.tokens import escape, visible
from workbench.results.matches import TRAP, MatchRecords
from workbench_ui.components.enhance import enhance, page_link
from workbench_ui.components.near import when_near
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version
from workbench_ui.kit.figures import chart
from workbench_ui.kit.index import Entry
from workbench_ui.kit.matching import QUANTITIES, SERIES, chosen, headline, massive_note, rows, with_names
from workbench_ui.kit.rows import Column, link_table, pager
from workbench_ui.views import transplants

RANGE = (0.5, 1.0)  # of r, before anything is chosen
SHOWN_ROWS = 50  # of a page of pairs


@st.fragment(key="mppc_body")
def body() -> None:
    """Selectors, what came out, distributions, layers, and the latents behind a bin."""
    with panels.guarded("The comparison"):
        panels.page_title(
            "Matches",
            "which latents of one model are found again in the other: best correlation on the same tokens, beside"
            " baselines",
        )
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            found = chosen()
            if found is None:
                return
            entry, m = found
            direction = choose_direction(m)
        check_version(entry, "m")
        st.html(headline(m, direction))
        if note := massive_note(m, direction):
            st.html(div("sub", escape(note)))
        left, right = st.columns([3, 2], gap="large")
        with left, panels.guarded("The distribution"):
            distributions(entry, m, direction)
        with right, panels.guarded("The layers"):
            layers(entry, m, direction)
        when_near("mx_pairs", 800, "The table of pairs", lambda: pairs(m, direction))
        when_near("mx_transplants", 560, "The transplants", lambda: transplants.section(m))
        when_near("mx_token", 400, "What the token leaves", lambda: given_token(entry, m, direction))
        when_near("mx_baselines", 300, "The baselines", lambda: baselines(m, direction))


def choose_direction(m: MatchRecords) -> str:
    """Whose latents are looked for in whom; in the address."""
    a, b = m.names("ab")
    names = {"ab": f"{a} → {b}", "ba": f"{b} → {a}"}
    asked = st.segmented_control(
        "Direction",
        list(names),
        format_func=lambda d: visible(names[d]),
        required=True,
        **state.tie_choice("way", list(names), "ab"),
    )
    return asked or "ab"


def distributions(entry: Entry, m: MatchRecords, direction: str) -> None:
    """Maximal correlations beside the chosen baselines; dragging over the chart chooses a range of r."""
    panels.heading(
        "Distribution", "of each latent's best partner · drag across the chart to list the latents in that range"
    )
    summary = m.table("summary")
    known = [s for s in SERIES if s in set(summary[summary["direction"] == direction]["series"])]
    start = [s for s in ("cross", "same-token", "token-conditional", "shuffle", "neurons", "sae seed") if s in known]
    wanted = st.pills(
        "Series",
        known,
        selection_mode="multi",
        wrap=True,
        label_visibility="collapsed",
        format_func=lambda s: SHOWN.get(s, s),
        **state.tie_many("base", known, start),
    ) or ["cross"]
    if "token-conditional" in known:
        panels.trap(escape(TRAP))
    above = st.toggle("cumulative", help="Share of latents with at least this r", **state.tie_flag("cdf"))
    options = {"direction": direction, "series": list(wanted), "view": "above" if above else "histogram"}
    event = chart("mx_dist", "mppc_distribution", entry, options, height=400, brush=True)
    brushed(event)
    with st.expander("What the series are", key="mx_words"):
        st.html(
            panels.table(["series", "correlation with"], [[escape(SHOWN.get(s, s)), escape(SERIES[s])] for s in known])
        )


def brushed(event: Any) -> None:
    """A new range dragged on the chart moves the slider of the table below."""
    boxes = event.selection.box if event is not None else []
    if not boxes or "x" not in boxes[0]:
        return
    lo, hi = sorted(round(max(-0.2, min(1.0, float(x))), 2) for x in boxes[0]["x"][:2])
    if st.session_state.get("mx_brush") != (lo, hi) and hi > lo:
        st.session_state["mx_brush"] = (lo, hi)
        state.put(r=f"{lo:g}_{hi:g}", **{PAGE: None})


def layers(entry: Entry, m: MatchRecords, direction: str) -> None:
    """Layer by layer, and along token shifts."""
    panels.heading("Layer by layer", "best partner within each pair of layers")
    names = list(QUANTITIES)
    quantity = st.selectbox(
        "Quantity", names, label_visibility="collapsed", width=220, **state.tie_choice("quantity", names, names[0])
    )
    chart("mx_heat", "mppc_layers", entry, {"direction": direction, "statistic": QUANTITIES[quantity]}, height=260)
    if len(m.table("shifts")):
        panels.heading("Token shift", "does one side come a token late?")
        chart("mx_shift", "mppc_shift", entry, height=260)


def pairs(m: MatchRecords, direction: str) -> None:
    """The latents behind a range of r; a row opens the pair."""
    panels.heading("Pairs", "a row opens both latents on the same tokens; a header sorts all of them")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        lo, hi = st.slider(
            "r from … to", -0.2, 1.0, step=0.01, width=360, **state.tie_span("r", -0.2, 1.0, RANGE, (PAGE,))
        )
        own = sorted(m.best[m.best["direction"] == direction]["layer"].unique().tolist())
        layers = ["all", *(str(v) for v in own)]
        chosen_layer = st.selectbox(
            "Layer",
            layers,
            format_func=lambda v: "all layers" if v == "all" else f"layer {v}",
            width=150,
            **state.tie_choice("layer", layers, "all", (PAGE,)),
        )
        layer = None if chosen_layer == "all" else int(chosen_layer)
        mutual = st.toggle(
            "mutual only", help="Each is the other's best partner", **state.tie_flag("mutual", clears=(PAGE,))
        )
    order = state.get_choice(ORDER, [c for c in COLUMNS if SORTABLE[c]], "r")
    rising = state.get(ORDER_END) == ENDS[1]
    found = rows(m, direction, lo, hi, mutual=mutual, layer=layer)
    found = found.sort_values(order, ascending=rising, kind="stable", na_position="last")
    pages = max(1, -(-len(found) // SHOWN_ROWS))
    page = state.get_int(PAGE, 1, pages, 1) or 1
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.html(div("wb-head", div("sub", f"<b>{len(found):,}</b> latents with r between {lo:g} and {hi:g}")))
        if pages > 1:
            st.html(pager(page, pages, PAGE, "Pages of the pairs"))
    enhance("mx_enhance", puts=(ORDER, ORDER_END, PAGE))
    if found.empty:
        return
    shown = with_names(data.index(), found.iloc[(page - 1) * SHOWN_ROWS : page * SHOWN_ROWS])
    columns = [
        Column(title, said, name in NUMBERS, name if SORTABLE[name] else "") for name, (title, said) in COLUMNS.items()
    ]
    cells = [[cell_of(name, row, m) for name in COLUMNS] for row in shown.to_dict("records")]
    st.html(
        link_table(
            columns,
            cells,
            keys=(ORDER, ORDER_END),
            order=order,
            descending=not rising,
            orders=ENDS,
            page=PAGE,
            label="Latents with their best partners",
        )
    )


ORDER, ORDER_END, PAGE = "po", "pdir", "pp"  # keys of the address: what the pairs are sorted by, from which end, page
ENDS = ("high first", "low first")
NUMBERS = frozenset({"latent", "r", "partner", "n_fired", "n_cofire", "null_q99", "second_r"})


def cell_of(name: str, row: dict[str, Any], m: MatchRecords) -> str:
    """One cell as HTML; the first one is the link to both latents on the same tokens."""
    value = row[name]
    if name == "latent":
        where = {"m": m.id, "mv": m.version, "d": row["dictionary"], "i": int(value)}
        known = not pd.isna(row["partner"])
        where |= {"d2": row["partner_dictionary"], "i2": int(row["partner"])} if known else {}
        return page_link("pair", f"{int(value):,}", where)
    if name in ("fires on", "partner fires on"):
        return span("lab", escape(value))
    if name == "mutual":
        return "yes" if value else "no"
    if name in ("dictionary", "partner_dictionary"):
        return escape(visible(str(value))) if isinstance(value, str) else "–"
    if pd.isna(value):
        return "–"
    return f"{value:.3f}" if name in ("r", "null_q99", "second_r") else f"{int(value):,}"


COLUMNS = {  # of the table of pairs, from left to right: title and what it means
    "latent": ("latent", str(meaning("latent"))),
    "dictionary": ("dictionary", TERMS["dictionary"]),
    **{
        name: (title, str(meaning(title)))
        for name, title in (
            ("fires on", "fires on"),
            ("r", "max r"),
            ("partner fires on", "partner fires on"),
            ("partner", "partner"),
            ("partner_dictionary", "partner in"),
            ("n_fired", "fired"),
            ("n_cofire", "both fire"),
            ("null_q99", "chance 99 %"),
            ("second_r", "second best r"),
            ("mutual", "mutual"),
        )
    },
}
SORTABLE = {name: name in NUMBERS or name == "mutual" for name in COLUMNS}


def given_token(entry: Entry, m: MatchRecords, direction: str) -> None:
    """What is left of each similarity once the current token is known."""
    if m.readings(direction).empty:
        return
    panels.heading("Given the token", "raw, same-token and token-conditional, for both models and every baseline")
    chart("mx_given", "mppc_given_token", entry, {"direction": direction}, height=300)


def baselines(m: MatchRecords, direction: str) -> None:
    """The claim, step by step, and what could not be computed."""
    order = m.table("order")
    order = order[order["direction"] == direction]
    if len(order):
        panels.heading(
            "Order of the baselines",
            "expected: random &lt; neurons &lt; cross &lt; seeds, and untrained &lt; cross &lt; seeds given the token;"
            " each step with the 95 % interval of its difference of means",
        )
        cells = [
            [
                escape(SHOWN.get(x["lower"], x["lower"])),
                escape(SHOWN.get(x["higher"], x["higher"])),
                f"{x['difference']:+.3f}",
                f"{x['low']:+.3f} … {x['high']:+.3f}",
                "holds" if x["holds"] else "<b>does not hold</b>",
            ]
            for x in order.to_dict("records")
        ]
        st.html(panels.table(["lower", "higher", "difference of mean r", "95 %", ""], cells, numeric=frozenset({2, 3})))
    missing = m.metadata.get("missing") or {}
    if missing:
        sides = {f" {way}": f", {m.names(way)[0]}" for way in ("ab", "ba")}
        rows_html = []
        for name, why in missing.items():
            said = str(name)
            for end, model in sides.items():
                said = said.removesuffix(end) + model if said.endswith(end) else said
            rows_html.append([f"<b>{escape(said)}</b>", escape(panels.clip(str(why), 300))])
        panels.heading("Not computed", "baselines this workspace has no data for")
        st.html(panels.table(["series", "what it needs"], rows_html))


body()
