"""Panels of :mod:`workbench.exporting.figures` drawn by Plotly, with the size of their container and the colours of the
theme.

Plotly labels are HTML: every text goes through :func:`workbench.markup.tokens.escape`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.exporting.figures import Panel
from workbench.markup.tokens import clip, escape

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = ("#1f86c7", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7a7a7a")
DIVERGING = [
    [0, "#1f86c7"],
    [0.5, "rgba(127,127,127,.13)"],
    [1, "#D55E00"],
]  # its middle is nearly the page, in both themes
DASHES = ("dash", "dot", "dashdot", "longdash")
CELLS = (12, 8)  # a heat map of at most so many rows and columns shows its numbers
SMALL = {"size": 12.5}  # labels of axes, legends and colour bars; the theme's own would be below 12 px


def plot(panel: Panel, *, height: int = 380, scale: float | None = None) -> go.Figure:
    """One panel as a Plotly figure; its size follows the container, its colours the theme.

    ``scale``: the largest absolute value of a signed heat map, for several on one scale.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    top = _cap(panel)
    for trace in _TRACES[panel.kind](panel):
        figure.add_trace(trace)
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        title={"text": escape(panel.title), "font": {"size": 14}, "yref": "container", "y": 0.99, "yanchor": "top"}
        if panel.title
        else None,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": SMALL},
        font={"size": 13},
        hovermode="closest",
        uirevision="keep",
    )
    figure.update_xaxes(
        title={"text": escape(panel.x_label or panel.x), "font": SMALL}, tickfont=SMALL, automargin=True
    )
    figure.update_yaxes(
        title={"text": escape((panel.y_label or panel.y).strip()), "font": SMALL}, tickfont=SMALL, automargin=True
    )
    if panel.kind in ("line", "step"):
        figure.update_xaxes(**({"type": "log", "dtick": 1} if panel.log_x else {}))
    if panel.log_y:
        figure.update_yaxes(type="log")
    if panel.y_range or top:
        figure.update_yaxes(range=list(panel.y_range or (0, top)))
    if scale and panel.kind == "heat":
        figure.update_traces(zmin=-scale, zmax=scale)
    if panel.title:
        figure.update_layout(margin={"t": 64 if panel.series else 34})
    if panel.kind in ("points", "heat"):
        _categories(figure, panel)
    return figure


def _cap(panel: Panel) -> float | None:
    """Top of the axis where one tall series (chance, usually) would flatten all others; None where the largest fits."""
    if panel.kind != "step" or panel.series is None or panel.log_y or panel.y_range:
        return None
    tops = sorted(float(part[panel.y].max()) for _, _, part in _series(panel))
    return 1.5 * tops[-2] if len(tops) > 1 and tops[-1] > 3 * tops[-2] > 0 else None


def _named(panel: Panel, name: str, part: pd.DataFrame) -> str:
    """A series in the legend: with its n where it has one, and where the axis cuts it, with its largest value."""
    n = part["n"].unique().tolist() if "n" in part.columns else []
    top = _cap(panel)
    size = f" (n {int(n[0]):,})" if len(n) == 1 and n[0] > 1 and "(n " not in name else ""
    cut = f", up to {part[panel.y].max():.2g}" if top and part[panel.y].max() > top else ""
    return escape(f"{name}{size}{cut}")


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
            yield go.Scatter(
                x=x,
                y=y,
                fill="toself",
                fillcolor=colour,
                opacity=0.18,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        line = {
            "color": colour,
            "dash": DASHES[j % len(DASHES)] if reference else "solid",
            "width": 1.5 if reference else 2.5,
        }
        if panel.kind == "step":
            line["shape"] = "hv"
        few = panel.kind == "line" and len(part) <= 40
        yield go.Scatter(
            x=part[panel.x],
            y=part[panel.y],
            name=_named(panel, name, part),
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
            x=part[panel.y],
            y=at,
            error_x=bars,
            mode="markers",
            name=escape(name),
            marker=marker,
            showlegend=panel.series is not None,
        )


def _heat(panel: Panel) -> Iterator[Any]:
    import plotly.graph_objects as go

    xs, ys = _order(panel.frame[panel.x]), _order(panel.frame[panel.y])
    z: list[list[float | None]] = [[None] * len(xs) for _ in ys]
    for x, y, v in zip(panel.frame[panel.x], panel.frame[panel.y], panel.frame[panel.value], strict=True):
        z[ys[y]][xs[x]] = None if pd.isna(v) else float(v)
    values = [v for row in z for v in row if v is not None]
    signed = panel.diverging or (bool(values) and min(values) < 0)
    most = max((abs(v) for v in values), default=0.0) or 1.0
    colours = {"colorscale": DIVERGING, "zmin": -most, "zmax": most} if signed else {"colorscale": "Cividis"}
    bar = {
        "title": {"text": escape(panel.value_label or panel.value or ""), "font": SMALL, "side": "right"},
        "tickfont": SMALL,
        "thickness": 12,
    }
    names = [[f"{escape(str(y))} · {escape(str(x))}" for x in xs] for y in ys]
    inside = {"texttemplate": "%{z:.3g}", "textfont": SMALL} if len(ys) <= CELLS[0] and len(xs) <= CELLS[1] else {}
    hover = {"customdata": names, "hovertemplate": "%{customdata}: %{z:.4g}<extra></extra>", "hoverongaps": False}
    yield go.Heatmap(x=list(range(len(xs))), y=list(range(len(ys))), z=z, colorbar=bar, **colours, **inside, **hover)


def _order(values: pd.Series) -> dict[Any, int]:
    """Numbers in order, other categories as they come."""
    found = list(dict.fromkeys(values))
    return {v: j for j, v in enumerate(sorted(found) if all(isinstance(v, int | float) for v in found) else found)}


def _categories(figure: go.Figure, panel: Panel) -> None:
    """Categories as numbered ticks: two equal labels stay two rows."""
    if panel.kind == "points":
        names = _order(panel.frame[panel.x])
        figure.update_yaxes(
            tickvals=list(names.values()),
            ticktext=[escape(clip(str(v), 40)) for v in names],
            autorange="reversed",
            title=None,
        )
        figure.update_xaxes(title={"text": escape(panel.y_label or panel.y)}, type="log" if panel.log_y else None)
        figure.update_yaxes(type=None)
        return
    for update, names in (
        (figure.update_xaxes, _order(panel.frame[panel.x])),
        (figure.update_yaxes, _order(panel.frame[panel.y])),
    ):
        every = max(1, len(names) // 24)
        shown = list(names.items())[::every]
        update(tickvals=[j for _, j in shown], ticktext=[escape(clip(str(v), 24)) for v, _ in shown])


_TRACES = {"line": _lines, "step": _lines, "points": _points, "heat": _heat}
