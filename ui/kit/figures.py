"""Figures on the screen, with their export and their numbers below them.

:func:`chart` builds the very figure that its export button downloads, so screen, table and paper cannot disagree.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from sae.errors import MissingError
from ui.kit import data, panels
from ui.kit.export import export_button
from ui.kit.index import Entry
from ui.kit.plotting import plot
from workbench.exporting.figures import FigureData
from workbench.markup.tokens import cell, escape

TABLE_ROWS = 1000
CONFIG = {"displaylogo": False, "displayModeBar": False}


def chart(
    key: str,
    figure: str,
    entry: Entry,
    options: dict[str, Any] | None = None,
    *,
    height: int = 320,
    scale: float | None = None,
    brush: bool = False,
) -> Any:
    """The first panel of the figure ``workbench export`` would draw, with export and table below it.

    ``scale`` puts signed heat maps on one colour scale; with ``brush`` a range can be chosen, and Streamlit's event is
    returned. A figure whose numbers do not exist becomes a panel that says so, and None is returned.
    """
    try:
        made = drawn(figure, entry, options or {})
    except MissingError as e:
        panels.note(escape(str(e)), "missing")
        return None
    picture = plot(replace(made.panels[0], title=""), height=height, scale=scale)
    alt = made.alt or made.caption
    event = None
    if brush:
        picture.update_layout(dragmode="select", selectdirection="h")
        event = st.plotly_chart(
            picture, key=f"{key}_fig", config=CONFIG, alt=alt, on_select="rerun", selection_mode="box"
        )
    else:
        st.plotly_chart(picture, key=f"{key}_fig", config=CONFIG, alt=alt)
    below(key, made.data, made.tokens, figure=figure, source=f"{entry.kind}/{entry.id}", options=options)
    return event


def drawn(figure: str, entry: Entry, options: dict[str, Any]) -> FigureData:
    """The figure of one result, kept.

    Raises:
        UserError: its numbers do not exist or cannot be read.
    """
    return _built(
        str(data.workspace_folder()),
        f"{entry.kind}/{entry.id}",
        entry.version,
        figure,
        json.dumps(options, sort_keys=True),
    )


@st.cache_resource(show_spinner=False, max_entries=200)
def _built(root: str, source: str, version: str, figure: str, options: str) -> FigureData:
    from workbench.exporting import FigureSpec
    from workbench.exporting.figures import build
    from workbench.workspace import Workspace

    return build(FigureSpec(figure=figure, source=source, options=json.loads(options)), Workspace(root, create=False))


def below(
    key: str,
    frame: pd.DataFrame,
    tokens: tuple[str, ...] = (),
    *,
    figure: str = "",
    source: str = "",
    options: dict[str, Any] | None = None,
) -> None:
    """What every chart has below it: its export, where it is one, and its numbers as a table."""
    with st.container(horizontal=True, vertical_alignment="top", gap="small", key=f"wb_below_{key}"):
        if figure:
            export_button(figure, source, options, key=f"{key}_export", type="tertiary")
        with st.expander("Show as table", key=f"{key}_table", on_change="rerun", type="compact") as box:
            if box.open:
                table(frame, tokens)


def table(frame: pd.DataFrame, tokens: tuple[str, ...] = ()) -> None:
    """A frame as it is, text made visible; long ones are cut and say so."""
    shown = frame.head(TABLE_ROWS).copy()
    for name in shown.columns:
        if shown[name].dtype == object or str(shown[name].dtype) in ("str", "string"):
            shown[name] = [cell(v, 80) if isinstance(v, str) else v for v in shown[name]]
    st.dataframe(shown, hide_index=True, lazy=False, placeholder="–", height="content" if len(shown) <= 12 else 420)
    if len(frame) > TABLE_ROWS:
        st.caption(f"first {TABLE_ROWS:,} of {len(frame):,} rows; the export holds all of them")
