"""Panels of :mod:`workbench.exporting.figures` drawn by Plotly as :mod:`workbench.exporting.drawing` says, in their
container's size and on the ground of the theme.

Plotly labels are HTML: every text goes through :func:`workbench.markup.tokens.escape`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

from workbench.exporting.axes import Axis
from workbench.exporting.drawing import Cells, Drawing, drawing
from workbench.exporting.figures import Panel
from workbench.exporting.palette import SHADE
from workbench.markup.tokens import clip, escape

if TYPE_CHECKING:
    import plotly.graph_objects as go

SIZE = 12.5
SMALL = {"size": SIZE}  # labels of axes, legends and colour bars; the theme's own would be below 12 px
# Else Plotly measures each label several times, a third of what drawing takes, to hide those that would be cut off
# at the edge of the figure; the margins grow with the labels, so none is.
WHOLE = {"ticklabeloverflow": "allow"}
LETTER, CAPITAL, WIDE = 0.58 * SIZE, 0.72 * SIZE, SIZE  # px; a little more than letters of the page's font take
BESIDE = 26.0  # px beside the labels of an axis: their marks, and its title
NARROWEST = 180.0  # px of an x axis on a telephone; labels that do not fit there are turned, and margins follow them


def plot(panel: Panel, *, height: int = 380) -> go.Figure:
    """One panel as a Plotly figure; its size follows the container, its ground and ink the theme."""
    import plotly.graph_objects as go

    found = drawing(panel)
    title = "" if found.x is not None and found.x.label == panel.title else panel.title
    layout: dict[str, Any] = {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": (64 if found.named else 34) if title else 8, "b": 8},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": SMALL},
        "font": {"size": 13},
        "hovermode": "closest",
        "uirevision": "keep",
        "showlegend": bool(found.named),
    }
    if title:
        layout["title"] = {
            "text": escape(title),
            "font": {"size": 14},
            "yref": "container",
            "y": 0.99,
            "yanchor": "top",
        }
    if found.x is None or found.y is None:
        layout |= {"xaxis": {"visible": False}, "yaxis": {"visible": False, "scaleanchor": "x"}}
    else:
        layout |= {"xaxis": _axis(found.x), "yaxis": _axis(found.y)}
        # Margins that Plotly finds by itself cost it a second drawing of both axes; those of labels that lie flat are
        # known beforehand.
        layout["yaxis"]["automargin"] = False
        layout["margin"]["l"] = 8 + BESIDE * bool(found.y.label) + max(_widths(found.y), default=0.0)
        if sum(_widths(found.x)) <= NARROWEST:
            layout["xaxis"]["automargin"] = False
            layout["margin"]["b"] = 8 + 1.5 * SIZE + BESIDE * bool(found.x.label)
    return go.Figure(list(_traces(found)), layout)  # all at once: each later change costs Plotly milliseconds


def _axis(axis: Axis) -> dict[str, Any]:
    """Limits, ticks and label as the drawing says; Plotly counts log axes in powers of ten."""
    stretch = [math.log10(v) for v in axis.range] if axis.log else list(axis.range)
    return {
        "title": {"text": escape(axis.label), "font": SMALL},
        "type": "log" if axis.log else "linear",
        "range": stretch,
        "tickvals": [at for at, _ in axis.ticks],
        "ticktext": [escape(clip(text, 40)) for _, text in axis.ticks],
        "tickfont": SMALL,
        "automargin": True,
        **WHOLE,
        "zeroline": False,
    }


def _widths(axis: Axis) -> list[float]:
    """Pixels that each label of an axis takes at most."""
    return [sum(map(_width, clip(text, 40))) for _, text in axis.ticks]


def _width(c: str) -> float:
    if c in "mwMWQ@%—…" or east_asian_width(c) in "WF":  # East Asian ones are as wide as high
        return WIDE
    return CAPITAL if c.isupper() else LETTER


def _traces(found: Drawing) -> Iterator[Any]:
    yield from _lines(found)
    yield from _points(found)
    if found.cells is not None:
        yield _heat(found.cells)
    yield from _scatter(found)


def _lines(found: Drawing) -> Iterator[Any]:
    """Curves per series with their bands; references dashed."""
    import plotly.graph_objects as go

    for c in found.curves:
        if c.low is not None and c.high is not None:
            yield go.Scatter(
                x=[*c.x, *c.x[::-1]],
                y=[*c.high, *c.low[::-1]],
                fill="toself",
                fillcolor=c.colour,
                opacity=0.18,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        line = {"color": c.colour, "dash": c.dash, "width": 1.7 if c.thin else 2.4}
        yield go.Scatter(
            x=c.x,
            y=c.y,
            name=escape(c.legend),
            mode="lines+markers" if c.marks else "lines",
            line=line | ({"shape": "hv"} if c.steps else {}),
        )


def _points(found: Drawing) -> Iterator[Any]:
    """Estimates with their intervals, one row per category."""
    import plotly.graph_objects as go

    for d in found.dots:
        bars = None
        if d.low is not None and d.high is not None:
            bars = {"type": "data", "array": d.high - d.x, "arrayminus": d.x - d.low, "thickness": 1.4}
        yield go.Scatter(
            x=d.x,
            y=d.y,
            error_x=bars,
            mode="markers",
            name=escape(d.name),
            marker={"color": d.colour, "size": 8, "symbol": d.symbol},
        )


def _heat(cells: Cells) -> Any:
    import plotly.graph_objects as go

    colours = cells.colours(paper=False)
    names = [[f"{escape(str(y))} · {escape(str(x))}" for x in cells.columns] for y in cells.rows]
    few = cells.texts is not None and cells.values.shape[1] <= 8
    return go.Heatmap(
        x=list(range(cells.values.shape[1])),
        y=list(range(cells.values.shape[0])),
        z=[[None if math.isnan(v) else v for v in row] for row in cells.values.tolist()],
        zmin=cells.low,
        zmax=cells.high,
        colorscale=_steps(colours) if cells.ramp else _scale(colours),
        colorbar=_bar(cells.label),
        text=cells.texts if few else None,
        texttemplate="%{text}" if few else None,
        textfont=SMALL,
        customdata=names,
        hovertemplate="%{customdata}: %{z:.4g}<extra></extra>",
        hoverongaps=False,
    )


def _scatter(found: Drawing) -> Iterator[Any]:
    """Points, coloured by series or value. A column ``hover`` is shown on hover, ``custom`` given back on a click."""
    import plotly.graph_objects as go

    if found.shade is not None:
        s = found.shade
        yield go.Heatmap(
            x=(s.x[1:] + s.x[:-1]) / 2,
            y=(s.y[1:] + s.y[:-1]) / 2,
            z=s.counts,
            colorscale=_scale(SHADE),
            showscale=False,
            hoverinfo="skip",
        )
    for j, cloud in enumerate(found.clouds):
        marker: dict[str, Any] = {"size": 5, "color": cloud.colour, "opacity": 0.85}
        if cloud.values is not None:
            marker |= {
                "color": cloud.values,
                "cmin": cloud.low,
                "cmax": cloud.high,
                "colorscale": _scale(cloud.colours()),
                "showscale": j == 0,
                "colorbar": _bar(cloud.label),
            }
        told = {}
        if "hover" in cloud.rows:
            told = {"text": [escape(t) for t in cloud.rows["hover"]], "hovertemplate": "%{text}<extra></extra>"}
        if "custom" in cloud.rows:
            told["customdata"] = cloud.rows["custom"].tolist()
        yield go.Scatter(x=cloud.x, y=cloud.y, mode="markers", marker=marker, name=escape(cloud.name), **told)


def _scale(colours: tuple[str, ...]) -> list[list[Any]]:
    return [[j / (len(colours) - 1), c] for j, c in enumerate(colours)]


def _steps(colours: tuple[str, ...]) -> list[list[Any]]:
    n = len(colours)
    return [[k / n, c] for j, c in enumerate(colours) for k in (j, j + 1)]


def _bar(label: str) -> dict[str, Any]:
    return {
        "title": {"text": escape(label), "font": SMALL, "side": "right"},
        "tickfont": SMALL,
        "thickness": 12,
    } | WHOLE
