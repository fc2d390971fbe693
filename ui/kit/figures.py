"""Figures on the screen: the panels of :mod:`workbench.export.figures` drawn by Plotly, with table and export beside them.

The same tidy frame feeds the screen, the table and the paper, so they cannot disagree. Plotly labels are HTML: every
text goes through :func:`workbench.markup.tokens.escape`.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from workbench.export.figures import FigureData, Panel
from workbench.markup.charts import legend
from workbench.markup.tags import div
from workbench.markup.tokens import cell, clip, escape, strip, visible

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = ("#1f86c7", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7a7a7a")
DIVERGING = [[0, "#1f86c7"], [0.5, "rgba(127,127,127,.13)"], [1, "#D55E00"]]  # its middle is nearly the page, in both themes
DASHES = ("dash", "dot", "dashdot", "longdash")
TABLE_ROWS = 1000
SMALL = {"size": 12.5}  # labels of axes, legends and colour bars; the theme's own would be below 12 px


def show(data: FigureData, key: str, *, height: int = 380) -> None:
    """All panels of a figure side by side, the caption, and the data as a table."""
    for column, (j, panel) in zip(st.columns(len(data.panels)), enumerate(data.panels), strict=True):
        with column:
            if panel.kind == "strips":
                st.html(strips(panel))
            else:
                st.plotly_chart(
                    plot(panel, height=height),
                    key=f"{key}_{j}",
                    config={"displaylogo": False, "displayModeBar": False},
                    alt=data.alt or data.caption,
                )
    n = " · ".join(f"{_n(v)} {k.replace('_', ' ')}" for k, v in data.n.items())
    st.html(div("wb-head", div("sub", html.escape(visible(data.caption)), f" <b>n</b>: {html.escape(n)}" if n else "")))
    with st.expander("Show as table", key=f"{key}_table", on_change="rerun") as box:
        if box.open:
            table(data.data, data.tokens)


def table(frame: pd.DataFrame, tokens: tuple[str, ...] = ()) -> None:
    """A frame as it is, text made visible; long ones are cut and say so."""
    shown = frame.head(TABLE_ROWS).copy()
    for name in shown.columns:
        if shown[name].dtype == object or str(shown[name].dtype) in ("str", "string"):
            shown[name] = [cell(v, 80) if isinstance(v, str) else v for v in shown[name]]
    st.dataframe(shown, hide_index=True, lazy=False, placeholder="–", height="content" if len(shown) <= 12 else 420)
    if len(frame) > TABLE_ROWS:
        st.caption(f"first {TABLE_ROWS:,} of {len(frame):,} rows; the export holds all of them")


def _n(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def plot(panel: Panel, *, height: int = 380) -> go.Figure:
    """One panel as a Plotly figure; its size follows the container, its colours the theme."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for trace in _TRACES[panel.kind](panel):
        figure.add_trace(trace)
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 30 if panel.title else 8, "b": 8},
        title={"text": escape(panel.title), "font": {"size": 14}} if panel.title else None,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": SMALL},
        font={"size": 13},
        hovermode="closest",
        uirevision="keep",
    )
    figure.update_xaxes(title={"text": escape(panel.x_label or panel.x), "font": SMALL}, tickfont=SMALL, automargin=True)
    figure.update_yaxes(title={"text": escape((panel.y_label or panel.y).strip()), "font": SMALL}, tickfont=SMALL, automargin=True)
    if panel.kind in ("line", "step"):
        figure.update_xaxes(**({"type": "log", "dtick": 1} if panel.log_x else {}))
    if panel.log_y:
        figure.update_yaxes(type="log")
    if panel.y_range:
        figure.update_yaxes(range=list(panel.y_range))
    if panel.kind in ("points", "heat"):
        _categories(figure, panel)
    return figure


def _series(panel: Panel) -> Iterator[tuple[int, str, pd.DataFrame]]:
    if panel.series is None:
        yield 0, "", panel.frame
    else:
        for j, (name, part) in enumerate(panel.frame.groupby(panel.series, sort=False)):
            yield j, str(name), part


def _lines(panel: Panel) -> Iterator[Any]:
    """Curves per series with their bands; references dashed."""
    import plotly.graph_objects as go

    for j, name, part in _series(panel):
        reference = name in panel.dashed
        colour = COLOURS[j % len(COLOURS)]
        if panel.low and panel.high and part[panel.low].notna().any():
            x = [*part[panel.x], *part[panel.x][::-1]]
            y = [*part[panel.high], *part[panel.low][::-1]]
            yield go.Scatter(x=x, y=y, fill="toself", fillcolor=colour, opacity=0.18, line={"width": 0}, hoverinfo="skip", showlegend=False)
        line = {"color": colour, "dash": DASHES[j % len(DASHES)] if reference else "solid", "width": 1.5 if reference else 2.5}
        if panel.kind == "step":
            line["shape"] = "hv"
        few = panel.kind == "line" and len(part) <= 40
        yield go.Scatter(
            x=part[panel.x],
            y=part[panel.y],
            name=escape(name),
            mode="lines+markers" if few else "lines",
            line=line,
            showlegend=panel.series is not None,
        )


def _points(panel: Panel) -> Iterator[Any]:
    """Estimates with their intervals, one row per category."""
    import plotly.graph_objects as go

    order = _order(panel.frame[panel.x])
    for j, name, part in _series(panel):
        bars = None
        if panel.low and panel.high:
            bars = {
                "type": "data",
                "array": part[panel.high] - part[panel.y],
                "arrayminus": part[panel.y] - part[panel.low],
                "thickness": 1.4,
            }
        marker = {"color": COLOURS[j % len(COLOURS)], "size": 8, "symbol": ("circle", "diamond", "square", "x")[j % 4]}
        at = [order[v] + 0.12 * j for v in part[panel.x]]
        yield go.Scatter(
            x=part[panel.y], y=at, error_x=bars, mode="markers", name=escape(name), marker=marker, showlegend=panel.series is not None
        )


def _heat(panel: Panel) -> Iterator[Any]:
    import plotly.graph_objects as go

    xs, ys = _order(panel.frame[panel.x]), _order(panel.frame[panel.y])
    z: list[list[float | None]] = [[None] * len(xs) for _ in ys]
    for x, y, v in zip(panel.frame[panel.x], panel.frame[panel.y], panel.frame[panel.value], strict=True):
        z[ys[y]][xs[x]] = None if pd.isna(v) else float(v)
    values = [v for row in z for v in row if v is not None]
    signed = bool(values) and min(values) < 0
    scale = {"colorscale": DIVERGING, "zmid": 0} if signed else {"colorscale": "Cividis"}
    bar = {"title": {"text": escape(panel.value_label or panel.value or ""), "font": SMALL}, "tickfont": SMALL, "thickness": 12}
    yield go.Heatmap(x=list(range(len(xs))), y=list(range(len(ys))), z=z, colorbar=bar, **scale)


def _order(values: pd.Series) -> dict[Any, int]:
    """Numbers in order, other categories as they come."""
    found = list(dict.fromkeys(values))
    return {v: j for j, v in enumerate(sorted(found) if all(isinstance(v, int | float) for v in found) else found)}


def _categories(figure: go.Figure, panel: Panel) -> None:
    """Categories as numbered ticks: two equal labels stay two rows."""
    if panel.kind == "points":
        names = _order(panel.frame[panel.x])
        figure.update_yaxes(
            tickvals=list(names.values()), ticktext=[escape(clip(str(v), 40)) for v in names], autorange="reversed", title=None
        )
        figure.update_xaxes(title={"text": escape(panel.y_label or panel.y)}, type="log" if panel.log_y else None)
        figure.update_yaxes(type=None)
        return
    for update, names in ((figure.update_xaxes, _order(panel.frame[panel.x])), (figure.update_yaxes, _order(panel.frame[panel.y]))):
        every = max(1, len(names) // 24)
        shown = list(names.items())[::every]
        update(tickvals=[j for _, j in shown], ticktext=[escape(clip(str(v), 24)) for v, _ in shown])


def strips(panel: Panel) -> str:
    """Tokens shaded by value, one row per context."""
    vmax = float(panel.frame[panel.value].max()) if len(panel.frame) else 0.0
    rows = [
        strip([str(t) for t in part[panel.x]], part[panel.value].tolist(), vmax) for _, part in panel.frame.groupby(panel.y, sort=False)
    ]
    return legend(vmax) + "".join(rows)


_TRACES = {"line": _lines, "step": _lines, "points": _points, "heat": _heat}
