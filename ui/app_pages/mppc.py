"""MPPC: how well the latents of one model are found again in another, beside everything they should be judged by."""

from __future__ import annotations

import streamlit as st

from ui.kit import panels
from ui.kit.export import export_button
from ui.kit.figures import plot, table
from ui.kit.matching import QUANTITIES, chosen, distribution, headline, heatmap, rows, shifts
from workbench.markup.tokens import escape, visible
from workbench.matches import MatchRecords

CONFIG = {"displaylogo": False, "displayModeBar": False}


@st.fragment(key="mppc_body")
def body() -> None:
    """Selectors, what came out, distributions, layers, and the latents behind a bin."""
    with panels.guarded("The comparison"):
        panels.page_title(
            "Matches", "which latents of one model are found again in the other: best correlation on the same tokens, beside baselines"
        )
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            found = chosen()
            if found is None:
                return
            _, m = found
            a, b = m.names("ab")
            names = {"ab": f"{a} → {b}", "ba": f"{b} → {a}"}
            direction = (
                st.segmented_control(
                    "Direction", ["ab", "ba"], default="ab", key="dir2", format_func=lambda d: visible(names[d]), required=True
                )
                or "ab"
            )
        st.html(headline(m, direction))
        left, right = st.columns([3, 2], gap="large")
        with left, panels.guarded("The distribution"):
            distributions(m, direction)
        with right, panels.guarded("The layers"):
            layers(m, direction)
        with panels.guarded("The table of pairs"):
            pairs(m, direction)
        baselines(m, direction)


def distributions(m: MatchRecords, direction: str) -> None:
    """Maximal correlations beside the chosen baselines."""
    panels.heading("Distribution", "of each latent's best partner")
    known = list(m.table("summary").query("direction == @direction")["series"])
    start = [s for s in ("cross", "shuffle", "random", "neurons", "model seed", "sae seed") if s in known]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        wanted = st.pills("Series", known, selection_mode="multi", default=start, key="mx_series", label_visibility="collapsed") or [
            "cross"
        ]
        cdf = st.toggle("cumulative", key="mx_cdf")
    panel = distribution(m, direction, list(wanted), cdf=cdf)
    st.plotly_chart(plot(panel, height=340), key="mx_dist", config=CONFIG, alt="Distribution of maximal correlations per series")
    options = {"direction": direction, "series": list(wanted), "view": "above" if cdf else "histogram"}
    export_button("mppc_distribution", f"matches/{m.id}", options, key="mx_dist_export")
    with st.expander("Show as table", key="mx_dist_t", on_change="rerun") as box:
        if box.open:
            table(panel.frame)


def layers(m: MatchRecords, direction: str) -> None:
    """Layer by layer, and along token shifts."""
    panels.heading("Layer by layer")
    quantity = st.selectbox("Quantity", list(QUANTITIES), key="mx_q", label_visibility="collapsed", width=220)
    panel = heatmap(m, direction, QUANTITIES[quantity])
    st.plotly_chart(plot(panel, height=260), key="mx_heat", config=CONFIG, alt=f"{quantity} for every pair of layers")
    moved = shifts(m, direction)
    if len(moved.frame) > 1:
        panels.heading("Token shift", "does one side come a token late?")
        st.plotly_chart(plot(moved, height=200), key="mx_shift", config=CONFIG, alt="Mean maximal correlation by token shift")
    export_button("mppc_layers", f"matches/{m.id}", {"direction": direction, "statistic": QUANTITIES[quantity]}, key="mx_heat_export")
    with st.expander("Show as table", key="mx_heat_t", on_change="rerun") as box:
        if box.open:
            table(panel.frame)
            table(moved.frame)


def pairs(m: MatchRecords, direction: str) -> None:
    """The latents behind a range of r; a row opens the pair."""
    panels.heading("Pairs", "choose a row to see both latents on the same tokens")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        lo, hi = st.slider("r from … to", -0.2, 1.0, (0.5, 1.0), 0.05, key="mx_r", width=360)
        own = sorted(m.best.query("direction == @direction")["layer"].unique().tolist())
        layer = st.selectbox(
            "Layer", [None, *own], key="mx_layer", format_func=lambda v: "all layers" if v is None else f"layer {v}", width=150
        )
        mutual = st.toggle("mutual only", key="mx_mutual")
    found = rows(m, direction, lo, hi, mutual=mutual, layer=layer)
    st.html(f'<div class="wb-head"><div class="sub"><b>{len(found):,}</b> latents</div></div>')
    if found.empty:
        return
    shown = found.head(300)
    view = shown[
        ["dictionary", "latent", "r", "null_q99", "partner_dictionary", "partner", "n_fired", "n_cofire", "second_r", "matched", "mutual"]
    ]
    event = st.dataframe(
        view,
        key="mx_pairs",
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        lazy=False,
        placeholder="–",
        height="content" if len(view) <= 12 else 420,
        alt="Latents with their best partners",
        column_config={
            "r": st.column_config.ProgressColumn("max r", min_value=0.0, max_value=1.0, format="%.3f"),
            "null_q99": st.column_config.NumberColumn("chance, 99 %", format="%.3f"),
            "partner_dictionary": "partner in",
            "n_fired": st.column_config.NumberColumn("fired", format="localized"),
            "n_cofire": st.column_config.NumberColumn("both fire", format="localized"),
            "second_r": st.column_config.NumberColumn("second best r", format="%.3f"),
        },
    )
    if len(found) > len(shown):
        st.caption(f"the best {len(shown)} of {len(found):,}; narrow the range for others")
    picked = event.selection.rows
    if picked and picked[0] < len(shown):
        row = shown.iloc[picked[0]]
        link = {
            "m": m.id,
            "d": row["dictionary"],
            "i": int(row["latent"]),
            "d2": row["partner_dictionary"],
            "i2": int(row["partner"]),
            "mv": m.version,
        }
        st.switch_page("app_pages/pair.py", query_params={k: str(v) for k, v in link.items()})


def baselines(m: MatchRecords, direction: str) -> None:
    """The claim, step by step, and what could not be computed."""
    order = m.table("order").query("direction == @direction")
    if len(order):
        panels.heading("Order of the baselines", "each step with the 95 % interval of its difference of means")
        cells = [
            [
                escape(x["lower"]),
                escape(x["higher"]),
                f"{x['difference']:+.3f}",
                f"{x['low']:+.3f} … {x['high']:+.3f}",
                "holds" if x["holds"] else "<b>does not hold</b>",
            ]
            for x in order.to_dict("records")
        ]
        st.html(panels.table(["lower", "higher", "difference", "95 %", ""], cells, numeric=frozenset({2, 3})))
    missing = m.metadata.get("missing") or {}
    if missing:
        rows_html = [[f"<b>{escape(name)}</b>", escape(panels.clip(str(why), 300))] for name, why in missing.items()]
        panels.heading("Not computed", "baselines this workspace has no data for")
        st.html(panels.table(["series", "what it needs"], rows_html))


body()
