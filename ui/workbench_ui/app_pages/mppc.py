"""MPPC: how well the latents of one model are found again in another, beside everything they should be judged by."""

from __future__ import annotations

from typing import Any

import streamlit as st

from workbench.exporting.kinds.universality import SHOWN
from workbench.markup.glossary import TERMS, meaning
from workbench.markup.tags import div
from workbench.markup.tokens import escape, visible
from workbench.results.matches import TRAP, MatchRecords
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version
from workbench_ui.kit.figures import chart
from workbench_ui.kit.index import Entry
from workbench_ui.kit.matching import QUANTITIES, SERIES, chosen, headline, rows, with_names
from workbench_ui.views import transplants

RANGE = (0.5, 1.0)  # of r, before anything is chosen
SHOWN_ROWS = 300


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
        left, right = st.columns([3, 2], gap="large")
        with left, panels.guarded("The distribution"):
            distributions(entry, m, direction)
        with right, panels.guarded("The layers"):
            layers(entry, m, direction)
        with panels.guarded("The table of pairs"):
            pairs(m, direction)
        with panels.guarded("The transplants"):
            transplants.section(m)
        with panels.guarded("What the token leaves"):
            given_token(entry, m, direction)
        with panels.guarded("The baselines"):
            baselines(m, direction)


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
        state.put(r=f"{lo:g}_{hi:g}")


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
    panels.heading("Pairs", "choose a row to see both latents on the same tokens")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        lo, hi = st.slider("r from … to", -0.2, 1.0, step=0.01, width=360, **state.tie_span("r", -0.2, 1.0, RANGE))
        own = sorted(m.best[m.best["direction"] == direction]["layer"].unique().tolist())
        layers = ["all", *(str(v) for v in own)]
        chosen_layer = st.selectbox(
            "Layer",
            layers,
            format_func=lambda v: "all layers" if v == "all" else f"layer {v}",
            width=150,
            **state.tie_choice("layer", layers, "all"),
        )
        layer = None if chosen_layer == "all" else int(chosen_layer)
        mutual = st.toggle("mutual only", help="Each is the other's best partner", **state.tie_flag("mutual"))
    found = rows(m, direction, lo, hi, mutual=mutual, layer=layer)
    cut = f", the best {SHOWN_ROWS} of them below" if len(found) > SHOWN_ROWS else ""
    st.html(div("wb-head", div("sub", f"<b>{len(found):,}</b> latents with r between {lo:g} and {hi:g}{cut}")))
    if found.empty:
        return
    shown = with_names(data.index(), found.head(SHOWN_ROWS))
    c = st.column_config
    event = st.dataframe(
        shown[list(COLUMNS)],
        key="mx_pairs",
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        lazy=False,
        placeholder="–",
        height="content" if len(shown) <= 12 else 420,
        alt="Latents with their best partners",
        column_config={
            **{name: c.Column(title, help=help) for name, (title, help) in COLUMNS.items()},
            "fires on": c.TextColumn("fires on", width=190, help=COLUMNS["fires on"][1]),
            "partner fires on": c.TextColumn("partner fires on", width=190, help=COLUMNS["partner fires on"][1]),
            "r": c.ProgressColumn(
                "max r", width=120, min_value=0.0, max_value=1.0, format="%.3f", help=COLUMNS["r"][1]
            ),
            "null_q99": c.NumberColumn("chance 99 %", format="%.3f", help=COLUMNS["null_q99"][1]),
            "second_r": c.NumberColumn("second best r", format="%.3f", help=COLUMNS["second_r"][1]),
            "n_fired": c.NumberColumn("fired", format="localized", help=COLUMNS["n_fired"][1]),
            "n_cofire": c.NumberColumn("both fire", format="localized", help=COLUMNS["n_cofire"][1]),
        },
    )
    picked = event.selection.rows
    if picked and picked[0] < len(shown):
        row = shown.iloc[picked[0]]
        link = {"m": state.get("m"), "d": row["dictionary"], "i": int(row["latent"]), "mv": m.version}
        link |= {"d2": row["partner_dictionary"], "i2": int(row["partner"])}
        st.switch_page("app_pages/pair.py", query_params={k: str(v) for k, v in link.items()})


COLUMNS = {
    "dictionary": ("dictionary", TERMS["dictionary"]),
    **{
        name: (title, str(meaning(title)))
        for name, title in (
            ("latent", "latent"),
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
