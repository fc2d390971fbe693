"""All latents of a dictionary as a table: search, filter, sort, page; a row opens the latent."""

from __future__ import annotations

import numpy as np
import streamlit as st

from ui.kit import data, listing, panels, state
from ui.kit.context_bar import badges, browsable, context_bar
from ui.kit.index import Dictionary
from ui.kit.listing import add_button, part_of
from ui.views import latent_table
from ui.views.latent_table import DENSITIES, SORTS, Query
from workbench.exporting.tables import to_csv
from workbench.markup.tokens import clip, escape
from workbench.results.records import LatentRecords

PAGE = 50
ORDERS = ("high first", "low first")


def main() -> None:
    """The selectors, then the table."""
    d = context_bar(data.index())
    if d is not None:
        body()


@st.fragment(key="latents_body")
def body() -> None:
    """Controls and one page of rows."""
    with panels.guarded("The table of latents"):
        d = state.current(data.index())
        if d is None:
            return
        records = browsable(d)
        if records is None or d.records is None:
            return
        st.html(f'<div class="wb-title"><h1>Latents</h1><div>{badges(d)}</div></div>')
        query = controls(d)
        ids = latent_table.select(str(d.records.path), d.key, query)
        pages = max(1, -(-len(ids) // PAGE))
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            dead = int((records.table["n_fired"] == 0).sum())
            whole = f"{len(records):,} latents · {dead:,} never fired on {records.n_tokens:,} tokens"
            of = whole if query.latents is None else list_line(d)
            st.html(f'<div class="wb-head"><div class="sub"><b>{len(ids):,}</b> of {of}</div></div>')
            page = st.pagination(pages, max_visible_pages=7, **state.tie_page("page", pages)) if pages > 1 else 1
        if not len(ids):
            panels.note("No latent fits. Widen the filters or clear the search.", "info")
            return
        shown = ids[(min(page, pages) - 1) * PAGE : min(page, pages) * PAGE]
        event = st.dataframe(
            latent_table.page(records, shown),
            key="tbl",
            hide_index=True,
            on_select="rerun",
            selection_mode="single-row",
            column_config=latent_table.columns(),
            height="content" if len(shown) <= 18 else 640,
            alt=f"Latents {shown[0]} and others of {d.id}",
            lazy=False,
            placeholder="–",
        )
        with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
            st.download_button(
                f"All {len(ids):,} as CSV",
                lambda: as_csv(records, ids),
                file_name=f"{d.id}.csv",
                mime="text/csv",
                icon=":material/download:",
                on_click="ignore",
                key="la_csv",
                help=(
                    "Every latent that fits the search and the filters, in this order, with all its numbers; tokens are"
                    " JSON strings"
                ),
            )
            add_button(
                f"Add all {len(ids):,} to a list",
                len(ids),
                lambda: ((d, i) for i in ids.tolist()),
                help="Every latent that fits the search and the filters, in this order",
            )
        picked = event.selection.rows
        if picked and picked[0] < len(shown):
            st.switch_page("app_pages/latent.py", query_params=state.link(d, i=int(shown[picked[0]])))


def as_csv(records: LatentRecords, ids: np.ndarray) -> bytes:
    """The records' table of some latents, in their order, as the exports write tables."""
    part = records.table.iloc[[records.position(i) for i in ids.tolist()]]
    return to_csv(part, [c for c in ("peak_text", "promoted_text") if c in part])


def list_line(d: Dictionary) -> str:
    """Which list the table is narrowed to, and what of it this dictionary does not show, as HTML."""
    id = state.get("list") or ""
    part = part_of(id, d)
    parts = [f"{len(part.latents):,} latents in the list <b>{escape(data.lists()[0][id].name)}</b>"]
    if part.others:
        parts.append(f"{part.others:,} more are of other dictionaries")
    if part.old:
        parts.append(f"{part.old:,} were added on other data and may mean something else")
    return " · ".join(parts)


def controls(d: Dictionary) -> Query:
    """Search, sort and filters; their values live in the address."""
    known, _ = data.lists()
    asked = state.get("list")
    if asked and asked not in known:
        panels.note(f"The list <b>{escape(clip(asked, 80))}</b> is not in this workspace; showing all latents.", "warn")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        text = st.text_input(
            "Search",
            type="search",
            max_chars=100,
            placeholder="label, peak token or promoted token",
            width=330,
            **state.tie_text("q", 100),
        )
        sort = st.selectbox("Sort by", list(SORTS), width=200, **state.tie_choice("o", list(SORTS), next(iter(SORTS))))
        order = st.segmented_control("Order", ORDERS, required=True, **state.tie_choice("dir", ORDERS, ORDERS[0]))
        with st.popover("Filters", icon=":material/tune:"):
            every = (DENSITIES[0], DENSITIES[-1])
            density = st.select_slider(
                "Density (share of tokens)", DENSITIES, **state.tie_range("fd", DENSITIES, every)
            )
            strength = st.slider("Max activation, percentile", 0, 100, **state.tie_range("fm", range(101), (0, 100)))
            alive = st.toggle("hide latents that never fired", **state.tie_flag("al", True))
            labelled = st.toggle("labelled only", **state.tie_flag("lb"))
            called = {"": "any or none", **listing.names(known)}
            chosen = st.selectbox(
                "In the list",
                list(called),
                format_func=lambda i: called.get(i, str(i)),
                **state.tie_choice("list", list(called), ""),
            )
        if chosen:
            st.button(
                "All latents",
                icon=":material/filter_alt_off:",
                key="la_unlist",
                help="Show the latents outside of the list too",
                on_click=state.put,
                kwargs={"list": None},
            )
    return Query(
        str(text or "")[:100],
        sort,
        order == ORDERS[0],
        (float(density[0]), float(density[1])),
        (int(strength[0]), int(strength[1])),
        alive,
        labelled,
        part_of(chosen, d).latents if chosen in known else None,
    )


main()
