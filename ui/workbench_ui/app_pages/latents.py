"""All latents of a dictionary as a table: search, filter, sort, page; a row is a link to its latent."""

from __future__ import annotations

import numpy as np
import streamlit as st

from workbench.exporting.tables import to_csv
from workbench.markup.tags import div
from workbench.markup.tokens import clip, escape
from workbench.results.records import LatentRecords
from workbench_ui.components.enhance import enhance, page_link
from workbench_ui.kit import data, facts, listing, panels, state
from workbench_ui.kit.context_bar import badges, browsable, context_bar
from workbench_ui.kit.index import Dictionary
from workbench_ui.kit.listing import add_button, part_of
from workbench_ui.kit.rows import link_table, pager
from workbench_ui.views import latent_table
from workbench_ui.views.latent_table import DENSITIES, Query

PAGE = 50
ORDERS = ("high first", "low first")
FIRST = ("page",)  # another choice starts at the first page


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
        query = controls(d, records)
        ids = latent_table.select_of(d, query)
        pages = max(1, -(-len(ids) // PAGE))
        page = state.get_int("page", 1, pages, 1) or 1
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            dead = int((records.table["n_fired"] == 0).sum())
            whole = f"{len(records):,} latents · {dead:,} never fired on {records.n_tokens:,} tokens"
            of = whole if query.latents is None else list_line(d)
            st.html(f'<div class="wb-head"><div class="sub"><b>{len(ids):,}</b> of {of}</div></div>')
            if pages > 1:
                st.html(pager(page, pages))
        massive_line(d, records)
        enhance("la_enhance", puts=("o", "dir", "page"))
        if not len(ids):
            panels.note("No latent fits. Widen the filters or clear the search.", "info")
            return
        shown = ids[(page - 1) * PAGE : page * PAGE]
        columns, rows = latent_table.layout(latent_table.page(records, shown, facts.columns(d)), d, **walk())
        st.html(
            link_table(
                columns,
                rows,
                order=query.sort,
                descending=query.descending,
                orders=ORDERS,
                label=f"Latents of {d.id}",
            )
        )
        if pages > 1:
            st.html(pager(page, pages, label="Pages of the table, below it"))
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


def massive_line(d: Dictionary, records: LatentRecords) -> None:
    """That some rows are massive, and the way to the page that shows where; nothing where none are."""
    found, store = records.metadata.get("massive") or {}, str(d.about.get("store") or "")
    if not found.get("n") or data.index().find("stores", store) is None:
        return
    share = f"{found['square_share']:.0%} of all squared norm"
    held = f"{found['n']:,} of {found['n_rows']:,} rows are massive and hold {share}"
    where = page_link("text", "Where they are", {"st": store})
    numbers = records.manifest.numbers
    without = f" (L0 {numbers['l0']:.1f}, without them {numbers['l0_inliers']:.1f})" if "l0_inliers" in numbers else ""
    st.html(div("sub", f"{held}; what is said here counts them{without}. {where}"))


WALK = (
    "q",
    "o",
    "dir",
    "fd",
    "fm",
    "al",
    "lb",
    "ws",
    "list",
)  # the keys of the address that say which latents, in which order


def walk() -> dict[str, str]:
    """What of this table's address a latent's page needs to walk on in its order."""
    return {key: value for key in WALK if (value := state.get(key))}


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


def controls(d: Dictionary, records: LatentRecords) -> Query:
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
            live=True,
            placeholder="words of label, tokens or contexts",
            width=330,
            **state.tie_text("q", 100, FIRST),
        )
        sorts = latent_table.known_sorts(d, records)
        sort = st.selectbox("Sort by", sorts, width=220, **state.tie_choice("o", sorts, sorts[0], FIRST))
        order = st.segmented_control(
            "Order", ORDERS, required=True, **state.tie_choice("dir", ORDERS, ORDERS[0], FIRST)
        )
        with st.popover("Filters", icon=":material/tune:"):
            every = (DENSITIES[0], DENSITIES[-1])
            density = st.select_slider(
                "Density (share of tokens)", DENSITIES, **state.tie_range("fd", DENSITIES, every, FIRST)
            )
            strength = st.slider(
                "Max activation, percentile", 0, 100, **state.tie_range("fm", range(101), (0, 100), FIRST)
            )
            alive = st.toggle("hide latents that never fired", **state.tie_flag("al", True, FIRST))
            labelled = st.toggle("labelled only", **state.tie_flag("lb", clears=FIRST))
            well = latent_table.judged(d) and st.toggle(
                "well supported only",
                help="What `workbench trust` calls so: nine of ten such latents are real where that is known",
                **state.tie_flag("ws", clears=FIRST),
            )
            called = {"": "any or none", **listing.names(known)}
            chosen = st.selectbox(
                "In the list",
                list(called),
                format_func=lambda i: called.get(i, str(i)),
                **state.tie_choice("list", list(called), "", FIRST),
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
        bool(well),
        part_of(chosen, d).latents if chosen in known else None,
    )


main()
