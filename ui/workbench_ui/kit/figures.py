"""Figures on the screen, with their export and their numbers below them.

:func:`chart` builds the very figure that its export button downloads, so screen, table and paper cannot disagree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import streamlit as st

from sae.errors import MissingError
from workbench.exporting.figures import FigureData, Panel, axis_labels
from workbench.markup.glossary import meaning, term
from workbench.markup.tags import div
from workbench.markup.tokens import cell, escape
from workbench_ui.components.near import is_near
from workbench_ui.kit import data, panels
from workbench_ui.kit.export import export_button
from workbench_ui.kit.index import Entry
from workbench_ui.kit.plotting import plot

TABLE_ROWS = 1000
CONFIG = {"displaylogo": False, "displayModeBar": False}


def chart(
    key: str,
    figure: str,
    entry: Entry,
    options: dict[str, Any] | None = None,
    *,
    height: int = 320,
    brush: bool = False,
    later: bool = False,
) -> Any:
    """The figure ``workbench export`` would draw, its panels below each other, with export and table below them.

    With ``brush`` a range can be chosen in the first one, and Streamlit's event is returned. A figure ``later`` on the
    page is drawn when the reader comes near it. A figure whose numbers do not exist becomes a panel that says so, and
    None is returned.
    """
    try:
        made = drawn(figure, entry, options or {})
    except MissingError as e:
        panels.note(escape(str(e)), "missing")
        return None
    event, asked = None, _asked(figure, entry, options or {})
    if later:
        _later(key, asked, made, height)
    else:
        event = _pictures(key, asked, made, height, brush=brush)
    below(key, made, figure=figure, source=f"{entry.kind}/{entry.id}", options=options)
    return event


Asked = tuple[str, str, str, str, str]  # workspace, result, its data version, figure, options


def _pictures(key: str, asked: Asked, made: FigureData, height: int, *, brush: bool = False) -> Any:
    """Every panel as Plotly's figure; the event of the one that can be brushed."""
    alt, event = made.alt or made.caption, None
    for j in range(len(made.panels)):
        what: dict[str, Any] = {"key": f"{key}_fig{j or ''}", "config": CONFIG, "alt": alt}
        if brush and j == 0:
            picture = _picture(*asked, j, height, brush=True)
            event = st.plotly_chart(picture, on_select="rerun", selection_mode="box", **what)
        else:
            st.plotly_chart(_picture(*asked, j, height), **what)
    return event


@st.cache_resource(show_spinner=False, max_entries=200)
def _picture(
    root: str, source: str, version: str, figure: str, options: str, j: int, height: int, brush: bool = False
) -> Any:
    """One panel as Plotly's figure, kept for all sessions; not to be changed."""
    made = _built(root, source, version, figure, options)
    picture = plot(replace(made.panels[j], title="") if len(made.panels) == 1 else made.panels[j], height=height)
    return picture.update_layout(dragmode="select", selectdirection="h") if brush else picture


@st.fragment
def _later(key: str, asked: Asked, made: FigureData, height: int) -> None:
    """The same, once the reader comes near."""
    with panels.guarded("The figure"):
        if is_near(key, height * len(made.panels)):
            _pictures(key, asked, made, height)


def drawn(figure: str, entry: Entry, options: dict[str, Any]) -> FigureData:
    """The figure of one result, kept.

    Raises:
        UserError: its numbers do not exist or cannot be read.
    """
    return _built(*_asked(figure, entry, options))


def _asked(figure: str, entry: Entry, options: dict[str, Any]) -> Asked:
    """What names a figure of a result, for caches."""
    said = json.dumps(options, sort_keys=True)
    return str(data.workspace_folder()), f"{entry.kind}/{entry.id}", entry.version, figure, said


@st.cache_resource(show_spinner=False, max_entries=200)
def _built(root: str, source: str, version: str, figure: str, options: str) -> FigureData:
    from workbench.exporting import FigureSpec
    from workbench.exporting.figures import build
    from workbench.workspace import Workspace

    return build(FigureSpec(figure=figure, source=source, options=json.loads(options)), Workspace(root, create=False))


def below(
    key: str,
    what: FigureData | pd.DataFrame,
    tokens: tuple[str, ...] = (),
    *,
    figure: str = "",
    source: str = "",
    options: dict[str, Any] | None = None,
    shown: Sequence[Panel] = (),
) -> None:
    """What every chart has below it: what its axes mean, its export, where it is one, and its numbers as a table."""
    if isinstance(what, FigureData):
        shown = what.panels
    if said := axes_line(shown, what.explained if isinstance(what, FigureData) else None):
        st.html(said)
    with st.container(horizontal=True, vertical_alignment="top", gap="small", key=f"wb_below_{key}"):
        if figure:
            export_button(
                figure, source, options, key=f"{key}_export", name=_name(what, figure, source, options), type="tertiary"
            )
        with st.expander("Show as table", key=f"{key}_table", on_change="rerun", type="compact") as box:
            if box.open:
                table(what.data, what.tokens) if isinstance(what, FigureData) else table(what, tokens)


def axes_line(shown: Sequence[Panel], explained: Mapping[str, str] | None = None) -> str:
    """The labels of a chart's axes as HTML, each with its line of the glossary on hover and a link to it; empty where
    nothing is labelled.
    """
    said: dict[str, list[str]] = {}
    for axis, label in axis_labels(shown):
        said.setdefault(axis, []).append(term((explained or {}).get(label, label), label))
    line = " · ".join(f"{axis}: {', '.join(names)}" for axis, names in said.items())
    return div("wb-head", div("sub", line)) if line else ""


def _name(what: FigureData | pd.DataFrame, figure: str, source: str, options: dict[str, Any] | None) -> str:
    """The name under which the export page and the command line would write the same bundle."""
    if not isinstance(what, FigureData):
        return figure
    from workbench.exporting import FigureSpec, bundle_name

    return bundle_name(what, FigureSpec(figure=figure, source=source, options=options or {}))


def table(frame: pd.DataFrame, tokens: tuple[str, ...] = ()) -> None:
    """A frame as it is, text made visible; long ones are cut and say so."""
    shown = frame.head(TABLE_ROWS).copy()
    for name in shown.columns:
        if shown[name].dtype == object or str(shown[name].dtype) in ("str", "string"):
            shown[name] = [cell(v, 80) if isinstance(v, str) else v for v in shown[name]]
    columns = {name: st.column_config.Column(help=said) for name in map(str, shown) if (said := meaning(name))}
    st.dataframe(
        shown,
        hide_index=True,
        lazy=False,
        placeholder="–",
        height="content" if len(shown) <= 12 else 420,
        column_config=columns,
    )
    if len(frame) > TABLE_ROWS:
        st.caption(f"first {TABLE_ROWS:,} of {len(frame):,} rows; the export holds all of them")
