"""Panels to paper figures with matplotlib: vector, embedded TrueType fonts, the same bytes every time.

Nothing of the user's matplotlib configuration is used, no date is written, and provenance goes into every file.
"""

from __future__ import annotations

import io
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.exporting.figures import FigureData, Panel
from workbench.exporting.spec import Style
from workbench.markup.text import visible as _visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, those with most contrast on white first; they differ for the colour-blind, too.
PALETTES = {
    "okabe-ito": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    "greys": ("#000000", "#555555", "#888888", "#AAAAAA", "#333333", "#777777", "#BBBBBB"),
}
DASHES: tuple[Any, ...] = ("--", ":", "-.", (0, (5, 1, 1, 1)), (0, (1, 1)), (0, (6, 3)))
HIGHLIGHT = "#E69F00"
CROWDED = 6  # more series than this have their legend above the axes
FORMATS = ("pdf", "svg", "png")
_LOCK = threading.Lock()  # matplotlib's settings are global


def visible(text: str, family: str = "DejaVu Sans") -> str:
    """The text with everything the face has no glyph for as ``⟨U+XXXX⟩``."""
    face = _face(family)
    return _visible(text, lambda c: face.get_char_index(ord(c)) != 0)


@cache
def _face(family: str) -> Any:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties(family=family)))


@contextmanager
def _settings(style: Style) -> Iterator[None]:
    import matplotlib as mpl

    with _LOCK, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "font.size": style.font_size,
                "font.family": "DejaVu Sans",
                "axes.titlesize": style.font_size,
                "axes.labelsize": style.font_size,
                "legend.fontsize": style.font_size - 1,
                "xtick.labelsize": style.font_size - 1,
                "ytick.labelsize": style.font_size - 1,
                "axes.linewidth": 0.6,
                "lines.linewidth": 1.1,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "legend.frameon": False,
                "pdf.fonttype": 42,
                "ps.fonttype": 42,
                "svg.fonttype": "none",
                "svg.hashsalt": "workbench",
                "path.simplify": True,
            }
        )
        yield


def render(data: FigureData, style: Style, *, formats: Sequence[str] = FORMATS, stamp: str = "") -> dict[str, bytes]:
    """The figure in each format: ``{"pdf": bytes, …}``. ``stamp`` (one line) goes into the files' metadata."""
    with _settings(style):
        figure = draw(data, style)
        out = {}
        for name in formats:
            sink = io.BytesIO()
            figure.savefig(sink, format=name, dpi=style.dpi, metadata=_metadata(name, data, stamp))
            out[name] = sink.getvalue()
    return out


def _metadata(name: str, data: FigureData, stamp: str) -> dict[str, Any]:
    if name == "pdf":
        return {"CreationDate": None, "ModDate": None, "Subject": data.alt, "Keywords": stamp}
    if name == "svg":
        return {"Date": None, "Title": data.alt, "Description": stamp}
    return {"Description": data.alt, "Comment": stamp}


def draw(data: FigureData, style: Style) -> Figure:
    """The matplotlib figure (settings are the caller's). Strips take a row of their own; other panels share rows where
    wide enough.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 if style.inches <= 5 else max(1, min(3, sum(p.kind != "strips" for p in data.panels)))
    rows = _rows(data.panels, columns)
    heights = [max(_height(p, style, style.inches / len(row)) for p in row) for row in rows]
    figure = Figure(figsize=(style.inches, style.height or sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, parent in zip(
        rows, figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0], strict=True
    ):
        for ax, panel in zip(parent.subplots(1, len(row), squeeze=False)[0], row, strict=True):
            _DRAW[panel.kind](ax, panel, style)
            if panel.title and len(data.panels) > 1:
                ax.set_title(visible(panel.title), parse_math=False, loc="left")
    return figure


def _rows(panels: Sequence[Panel], columns: int) -> list[list[Panel]]:
    rows: list[list[Panel]] = []
    for panel in panels:
        open_row = rows and len(rows[-1]) < columns and "strips" not in (panel.kind, rows[-1][-1].kind)
        if open_row:
            rows[-1].append(panel)
        else:
            rows.append([panel])
    return rows


def _height(panel: Panel, style: Style, width: float) -> float:
    line = style.font_size / 72
    if panel.kind == "strips":
        return line * (1.9 * panel.frame[panel.y].nunique() + 1.5)
    if panel.kind == "points":
        return line * (sum(0.7 + 1.2 * (1 + label.count("\n")) for label in _wrapped(panel, style).values()) + 6)
    if panel.kind == "heat":
        nx, ny = panel.frame[panel.x].nunique(), panel.frame[panel.y].nunique()
        return min(1.4 * width, max(1.2, (width - 1.1) * ny / max(nx, 1) + 0.6), 4.0)
    crowd = panel.frame[panel.series].nunique() if panel.series else 0
    return 0.72 * width + (line * 0.65 * crowd if crowd > CROWDED else 0)


def _labels(ax: Axes, panel: Panel) -> None:
    ax.set_xlabel(visible(panel.x_label or panel.x), parse_math=False)
    ax.set_ylabel(visible(panel.y_label or panel.y), parse_math=False)


def _lines(ax: Axes, panel: Panel, style: Style) -> None:
    """Curves per series; references are dashed. Series are told apart by dash as well as colour."""
    from matplotlib.ticker import MaxNLocator

    colours = PALETTES[style.palette]
    groups = [("", panel.frame)] if panel.series is None else list(panel.frame.groupby(panel.series, sort=False))
    solid = 0
    dashed = 0
    for name, part in groups:
        reference = name in panel.dashed
        again = solid // len(colours)  # more series than colours: the next round is dashed, too
        line = DASHES[dashed % len(DASHES)] if reference else DASHES[(again - 1) % len(DASHES)] if again else "-"
        colour = colours[(solid if not reference else len(colours) - 1 - dashed) % len(colours)]
        dashed, solid = dashed + reference, solid + (not reference)
        x, y = part[panel.x].to_numpy(float), part[panel.y].to_numpy(float)
        how: dict[str, Any] = {"drawstyle": "steps-post"} if panel.kind == "step" else {}
        ax.plot(
            x,
            y,
            linestyle=line,
            color=colour,
            label=visible(str(name)) if panel.series else None,
            marker="o" if len(x) < 12 else None,
            markersize=2.5,
            **how,
        )
        if panel.low and panel.high:
            ax.fill_between(
                x,
                part[panel.low].to_numpy(float),
                part[panel.high].to_numpy(float),
                color=colour,
                alpha=0.18,
                linewidth=0,
            )
    if pd.api.types.is_integer_dtype(panel.frame[panel.x]) and not panel.log_x:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.log_x:
        ax.set_xscale("log")
    if panel.log_y:
        ax.set_yscale("log")
    if panel.y_range:
        ax.set_ylim(*panel.y_range)
    if panel.series and len(groups) > 1:
        outside: dict[str, Any] = {}
        if len(groups) > CROWDED:
            outside = {"loc": "lower left", "bbox_to_anchor": (-0.1, 1.0), "ncols": 2, "columnspacing": 1.0}
        ax.legend(handlelength=2.2, borderaxespad=0.2, labelspacing=0.3, **outside)
    _labels(ax, panel)


def _points(ax: Axes, panel: Panel, style: Style) -> None:
    """One row per category, its value and interval as a bar; first category on top."""
    names = list(dict.fromkeys(panel.frame[panel.x].astype(str)))
    at = {name: len(names) - 1 - i for i, name in enumerate(names)}
    series = [(None, panel.frame)] if panel.series is None else list(panel.frame.groupby(panel.series, sort=False))
    for s, (label, part) in enumerate(series):
        y = np.array([at[n] for n in part[panel.x].astype(str)]) - 0.22 * (s - (len(series) - 1) / 2)
        x = part[panel.y].to_numpy(float)
        bars = None
        if panel.low and panel.high:
            bars = np.nan_to_num(
                np.abs(np.stack([x - part[panel.low].to_numpy(float), part[panel.high].to_numpy(float) - x]))
            )
        colour = PALETTES[style.palette][s]
        ax.errorbar(
            x,
            y,
            xerr=bars,
            fmt="os^Dv"[s % 5],
            color=colour,
            markersize=3.5,
            elinewidth=1,
            capsize=2,
            label=None if label is None else visible(str(label)),
        )
    ax.set_yticks(list(at.values()), list(_wrapped(panel, style).values()))
    for tick in ax.get_yticklabels():
        tick.set_parse_math(False)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.set_xlabel(panel.y_label or panel.y, parse_math=False)
    if panel.y_range:
        ax.set_xlim(*panel.y_range)
    ax.grid(axis="x", color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)
    if len(series) > 1:
        ax.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(series) if style.inches > 5 else 1, borderaxespad=0
        )


def _wrapped(panel: Panel, style: Style) -> dict[str, str]:
    """Category -> its label, in lines that leave more than half of the width to the axes."""
    room = int(0.42 * style.inches * 72 / (0.55 * style.font_size))
    shown = {name: visible(name) for name in dict.fromkeys(panel.frame[panel.x].astype(str))}
    return {name: text if len(text) <= room else "\n".join(textwrap.wrap(text, room)) for name, text in shown.items()}


def _heat(ax: Axes, panel: Panel, style: Style) -> None:
    """A matrix of categories: cividis, or blue–white–orange about zero; with its numbers where they fit."""
    from matplotlib.colors import LinearSegmentedColormap

    assert panel.value is not None
    table = panel.frame.pivot(index=panel.y, columns=panel.x, values=panel.value)
    table = table.reindex(
        index=list(dict.fromkeys(panel.frame[panel.y])), columns=list(dict.fromkeys(panel.frame[panel.x]))
    )
    values = table.to_numpy(float)
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0.0, 1.0)
    colours: Any = "cividis" if style.palette == "okabe-ito" else "Greys"
    if panel.diverging:
        high = max(abs(low), abs(high), 1e-12)
        low = -high
        if style.palette == "okabe-ito":
            colours = LinearSegmentedColormap.from_list("signed", ["#0072B2", "#FFFFFF", "#D55E00"])
    image = ax.imshow(values, cmap=colours, aspect="auto", origin="lower", vmin=low, vmax=high)
    if all(isinstance(v, str) for v in [*table.index, *table.columns]) or max(values.shape) <= 16:
        ax.set_xticks(range(values.shape[1]), [visible(str(c)) for c in table.columns])
        ax.set_yticks(range(values.shape[0]), [visible(str(c)) for c in table.index])
    width = style.inches if style.inches <= 5 else style.inches / 2
    if (
        values.size
        and max(values.shape) <= 16
        and 0.68 * width / values.shape[1] >= 5 * 0.55 * (style.font_size - 2) / 72
    ):
        for (i, j), v in np.ndenumerate(values):
            shown = (
                "–"
                if np.isnan(v)
                else f"{round(float(v), 2) + 0.0:.2f}"
                if np.nanmax(np.abs(values)) < 10
                else f"{v:.0f}"
            )
            shade = image.cmap(image.norm(v))[:3] if np.isfinite(v) else (1, 1, 1)
            light = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 0.5
            ax.text(
                j, i, shown, ha="center", va="center", fontsize=style.font_size - 2, color="black" if light else "white"
            )
    for side in ax.spines.values():
        side.set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    bar.set_label(visible(panel.value_label or panel.value), parse_math=False)
    bar.outline.set_visible(False)  # type: ignore[operator]
    _labels(ax, panel)


def _strips(ax: Axes, panel: Panel, style: Style) -> None:
    """Rows of tokens in a fixed-width face, each shaded by its value; a row is centred on its strongest token."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Rectangle

    font = FontProperties(family="DejaVu Sans Mono", size=style.font_size - 1)
    assert panel.value is not None
    top = float(np.nanmax(panel.frame[panel.value].to_numpy(float))) if len(panel.frame) else 1.0
    cell = 0.602 * (style.font_size - 1) / 72  # inches per character of DejaVu Sans Mono
    room = int((style.inches - 0.2) / cell)
    rows = list(panel.frame.groupby(panel.y, sort=False))
    for r, (_, part) in enumerate(rows):
        texts = [visible(str(t), "DejaVu Sans Mono") for t in part[panel.x]]
        values = part[panel.value].to_numpy(float)
        y = len(rows) - 1 - r
        x = 0
        strongest = values if panel.centre is None else part[panel.centre].to_numpy(float)
        for i in _fitting(texts, int(np.nanargmax(strongest)) if np.isfinite(strongest).any() else 0, room):
            width = len(texts[i])
            if values[i] > 0 and top > 0:
                ax.add_patch(
                    Rectangle(
                        (x, y + 0.08),
                        width,
                        0.84,
                        facecolor=HIGHLIGHT,
                        alpha=0.15 + 0.85 * values[i] / top,
                        linewidth=0,
                    )
                )
            ax.text(
                x,
                y + 0.5,
                texts[i],
                fontproperties=font,
                va="center_baseline",
                ha="left",
                parse_math=False,
                clip_on=True,
                in_layout=False,
            )
            x += width
    ax.set_xlim(0, room)
    ax.set_ylim(0, max(len(rows), 1))
    ax.set_axis_off()


def _fitting(texts: Sequence[str], peak: int, room: int) -> range:
    """The longest run of tokens around ``peak`` that fits into ``room`` characters, grown to both sides in turn."""
    if not texts:
        return range(0)
    lo, hi, used = peak, peak + 1, len(texts[peak])
    while True:
        left = lo > 0 and used + len(texts[lo - 1]) <= room
        right = hi < len(texts) and used + len(texts[hi]) <= room
        if left and (not right or peak - lo <= hi - peak):
            lo -= 1
            used += len(texts[lo])
        elif right:
            used += len(texts[hi])
            hi += 1
        else:
            return range(lo, hi)


def _scatter(ax: Axes, panel: Panel, style: Style) -> None:
    """A dot per row, coloured by series; positions mean nothing by themselves, so there are no axes."""
    groups = [("", panel.frame)] if panel.series is None else list(panel.frame.groupby(panel.series, sort=False))
    for j, (name, part) in enumerate(groups):
        colour = PALETTES[style.palette][j % len(PALETTES[style.palette])]
        ax.scatter(
            part[panel.x],
            part[panel.y],
            s=2,
            color=colour,
            alpha=0.6,
            linewidths=0,
            label=visible(str(name)),
            rasterized=len(part) > 5000,
        )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_axis_off()
    if len(groups) > 1:
        ax.legend(markerscale=3, loc="upper left", borderaxespad=0)


_DRAW = {"line": _lines, "step": _lines, "points": _points, "heat": _heat, "strips": _strips, "scatter": _scatter}
