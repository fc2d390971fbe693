"""Map of decoder directions: for finding one's way; and nearest neighbours against measured chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from workbench.exporting.figures import Panel
from workbench.exporting.kinds.maps import nearest_panel, read_table
from workbench.markup.tags import div
from workbench.markup.tokens import escape
from workbench.workspace import Item
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version, choose
from workbench_ui.kit.figures import CONFIG, below, table
from workbench_ui.kit.figures import drawn as drawn_figure
from workbench_ui.kit.index import Entry
from workbench_ui.kit.listing import add_button
from workbench_ui.kit.matching import fires_on
from workbench_ui.kit.plotting import plot
from workbench_ui.views.picking import inside

POINTS = 3000
COLOURED = {"dictionary": "by dictionary", "density": "by density", "max": "by largest activation"}


@st.fragment(key="map_body")
def body() -> None:
    """Choice of map, the map, neighbours, families."""
    with panels.guarded("The map"):
        panels.page_title("Map", "decoder directions of a dictionary: families at a glance")
        known = data.index().dictionaries
        any_one = next((d.id for d in known.values() if d.records is not None), next(iter(known), "DICTIONARY"))
        entry = choose("maps", "Map", "map", what="Maps", command=f"map {any_one}")
        if entry is None:
            return
        check_version(entry, "map")
        left, right = st.columns([3, 2], gap="large")
        with left, panels.guarded("The layout"):
            layout(entry)
        with right, panels.guarded("The neighbours"):
            neighbours(entry)
        with panels.guarded("The families"):
            families(entry)


@st.cache_resource(show_spinner=False, max_entries=6)
def _read(path: str, name: str, version: str) -> pd.DataFrame | None:
    folder = Path(path)
    return read_table(Item("maps", folder.name, folder), name)


def layout(entry: Entry) -> None:
    """Density of all points and a sample of them; a click opens the latent, a box or lasso offers a list."""
    points = _read(str(entry.path), "points", entry.version)
    if points is None:
        panels.not_computed("Layout", entry.manifest.command.replace(" --no-layout", "") or "workbench map DICTIONARY")
        return
    panels.heading(
        "Layout",
        f"one point per latent (n {len(points):,}) · hover for what it fires on · a click opens it · a box or lasso"
        " chooses many",
    )
    row = st.container(
        horizontal=True, vertical_alignment="center", gap="medium"
    )  # what is drawn below adds to it, and moves nothing
    quantity = (
        row.segmented_control(
            "Colour",
            list(COLOURED),
            required=True,
            label_visibility="collapsed",
            format_func=lambda q: COLOURED[q],
            **state.tie_choice("col", list(COLOURED), "density"),
        )
        or "density"
    )
    options = {"points": POINTS} if quantity == "density" else {"points": POINTS, "colour": quantity}
    panel = drawn_figure("decoder_map", entry, options).panels[0]
    event = st.plotly_chart(
        scatter(entry, panel),
        key=f"ma_{entry.id}",
        on_select="rerun",
        selection_mode=("points", "box", "lasso"),
        config={"displaylogo": False, "scrollZoom": True, "displayModeBar": True},
        alt="Two-dimensional layout of decoder directions",
    )
    drawn = event.selection
    if drawn.box or drawn.lasso:
        with row:
            chosen_latents(points, drawn)
    method = str(entry.metadata.get("layout") or "")
    sample = (
        f"{len(panel.frame):,} of {len(points):,} latents; grey shade: where all of them lie."
        if panel.backdrop is not None
        else ""
    )
    st.html(div("wb-head", div("sub", escape(f"{method} {sample}"))))
    below("ma_points", points, figure="decoder_map", source=f"maps/{entry.id}", options=options, shown=[panel])
    if not (drawn.box or drawn.lasso) and drawn.points and drawn.points[0].get("customdata"):
        name, latent = drawn.points[0]["customdata"][:2]
        d = data.index().dictionaries.get(str(name))
        if d is not None:
            st.switch_page("app_pages/latent.py", query_params=state.link(d, i=int(latent)))


def chosen_latents(points: pd.DataFrame, drawn: Any) -> None:
    """How many latents a box or lasso holds, those that are not drawn included, and the way into a list."""
    shown = {
        str(p["customdata"][0]) for p in drawn.points if p.get("customdata")
    }  # what the legend hides is not chosen
    found = points[inside(points, drawn.box, drawn.lasso) & points["dictionary"].isin(shown)]
    known = data.index().dictionaries
    here = found[found["dictionary"].isin(list(known))]
    gone = (
        f" · {len(found) - len(here):,} of a dictionary that is not in this workspace" if len(here) < len(found) else ""
    )
    latents = [(known[str(name)], int(i)) for name, i in zip(here["dictionary"], here["latent"], strict=True)]
    st.html(div("wb-head", div("sub", f"<b>{len(found):,}</b> latents chosen{gone}")), width="content")
    if latents:
        add_button("Add to a list", len(latents), lambda: latents)


def scatter(entry: Entry, panel: Panel) -> Any:
    """The layout as the figure has it, with what a latent fires on shown on hover."""
    frame = panel.frame.copy()
    words: dict[tuple[str, int], str] = {}
    for name, part in frame.groupby("dictionary", sort=False):
        told = fires_on(data.index(), str(name), part["latent"].tolist())
        words |= {(str(name), int(i)): text for i, text in zip(part["latent"], told, strict=True)}
    pairs = [(str(d), int(i)) for d, i in zip(frame["dictionary"], frame["latent"], strict=True)]
    frame["hover"] = [f"#{i} {words[d, i]}" for d, i in pairs]
    frame["custom"] = [[d, i] for d, i in pairs]
    figure = plot(replace(panel, frame=frame, title=""), height=600)
    figure.update_layout(margin={"l": 4, "r": 4, "t": 40, "b": 4}, dragmode="pan", uirevision=entry.id)
    return figure


def neighbours(entry: Entry) -> None:
    """Cosine of nearest neighbours beside measured chance."""
    panels.heading(
        "Nearest neighbours",
        "cosine, beside random directions: isotropic, and with the decoder's own covariance (matched); above: share of"
        " latents beyond 99.9 % of matched",
    )
    frame = _read(str(entry.path), "nearest_hist", entry.version)
    if frame is not None:
        panel = nearest_panel(frame)
        picture = plot(replace(panel, title=""), height=320)
        st.plotly_chart(
            picture, key="ma_hist", config=CONFIG, alt="Cosines of nearest neighbours and of random directions"
        )
        below("ma_near", frame, shown=[panel])
    rows = []
    for name, n in entry.numbers.items():
        if isinstance(n, dict) and "median_nearest_cosine" in n:
            rows.append(
                [
                    escape(name),
                    f"{n['median_nearest_cosine']:.3f}",
                    f"{n['median_matched']:.3f}",
                    f"{n['median_isotropic']:.3f}",
                    f"{100 * n['share_above_matched']:.1f} %",
                    f"{n['n_latents']:,}",
                ]
            )
    if rows:
        st.html(
            panels.table(
                ["dictionary", "median cosine", "matched", "isotropic", "above", "n"],
                rows,
                numeric=frozenset({1, 2, 3, 4, 5}),
            )
        )


def families(entry: Entry) -> None:
    """Feature splitting between widths, where the map holds several."""
    frame = _read(str(entry.path), "families", entry.version)
    if frame is not None:
        panels.heading("Families", "which narrow latent each wide one descends from")
        table(frame.sort_values("parent"))


body()
