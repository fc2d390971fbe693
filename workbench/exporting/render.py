"""Panels to paper figures with matplotlib: vector, embedded TrueType fonts, the same bytes every time.

Nothing of the user's matplotlib configuration is used, no date is written, and provenance goes into every file.
"""

from __future__ import annotations

import io
import re
import textwrap
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sae.errors import UsageError
from workbench.exporting.axes import Axis
from workbench.exporting.drawing import Cells, Drawing, drawing
from workbench.exporting.figures import FigureData, Panel
from workbench.exporting.palette import RAMP, UNDERLINE
from workbench.exporting.spec import Style
from workbench.markup.text import visible as _visible
from workbench.markup.tokens import LEVELS, clip, level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CROWDED = 4  # more series than this have their legend above the axes
BESIDE = 5  # inches: in a wider figure of rows the names of series stand beside each other, else below each other
TALLEST = 8.6  # inches: what a page of a paper leaves beside a caption
DASH: dict[str, Any] = {
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdash": (0, (6, 3)),
    "longdashdot": (0, (6, 2, 1, 2)),
}
SYMBOL = {"circle": "o", "square": "s", "diamond": "D", "x": "x", "cross": "+"}
FORMATS = ("pdf", "svg", "png")
_CLIP = re.compile(rb'<clipPath id="(\w+)"')
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
def settings(style: Style) -> Iterator[None]:
    """matplotlib's own defaults with ``style`` and nothing of the user's, for whatever is drawn inside; one thread at a
    time.
    """
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
    with settings(style):
        figure = draw(data, style)
        out = {}
        for name in formats:
            sink = io.BytesIO()
            figure.savefig(sink, format=name, dpi=style.dpi, metadata=_metadata(name, data, stamp))
            out[name] = _clips_numbered(sink.getvalue()) if name == "svg" else sink.getvalue()
    return out


def _clips_numbered(svg: bytes) -> bytes:
    """Clip paths named by their order: matplotlib names each by a digest of where it lies to the last bit, and that
    bit, which the layout's solver leaves, is not the same in every process.
    """
    for i, name in enumerate(dict.fromkeys(_CLIP.findall(svg)), 1):
        svg = svg.replace(name, b"clip-%d" % i)
    return svg


def _metadata(name: str, data: FigureData, stamp: str) -> dict[str, Any]:
    if name == "pdf":
        return {"CreationDate": None, "ModDate": None, "Subject": data.alt, "Keywords": stamp}
    if name == "svg":
        return {"Date": None, "Title": data.alt, "Description": stamp}
    return {"Description": data.alt, "Comment": stamp}


def draw(data: FigureData, style: Style) -> Figure:
    """The matplotlib figure (settings are the caller's). Strips take a row of their own; other panels share rows where
    wide enough.

    Raises:
        UsageError: it would be taller than a page of a paper.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 if style.inches <= 5 else max(1, min(3, sum(p.kind != "strips" for p in data.panels)))
    rows = _rows(data.panels, columns)
    made = {id(p): None if p.kind == "strips" else drawing(p, style.palette) for p in data.panels}
    heights, close = _heights(rows, made, style)
    figure = Figure(figsize=(style.inches, style.height or sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, parent in zip(
        rows, figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0], strict=True
    ):
        for ax, panel in zip(parent.subplots(1, len(row), squeeze=False)[0], row, strict=True):
            found = made[id(panel)]
            if found is None:
                _strips(ax, panel, style)
            elif found.dots:
                _points(ax, found, style, close)
            elif found.cells is not None:
                _heat(ax, found, found.cells, style)
                if panel.square:
                    ax.set_aspect("equal")
            elif found.clouds:
                _scatter(ax, found)
            else:
                _lines(ax, found)
            said = found is not None and found.x is not None and found.x.label == panel.title
            if panel.title and len(data.panels) > 1 and not said:
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


def _heights(rows: list[list[Panel]], made: dict[int, Drawing | None], style: Style) -> tuple[list[float], int]:
    """Inches of every row, and how far the labels of rows had to give way (0 to 3) for the whole to fit on a page.

    Raises:
        UsageError: not even then.
    """
    for close in range(4):
        heights = [max(_height(p, made[id(p)], style, style.inches / len(row), close) for p in row) for row in rows]
        if style.height or sum(heights) <= TALLEST:
            return heights, close
    total = sum(heights)
    flexible = sum(
        h for row, h in zip(rows, heights, strict=True) if all(p.kind not in ("strips", "points") for p in row)
    )
    if flexible and (keep := TALLEST - (total - flexible)) > 0.55 * flexible:
        share = keep / flexible
        return [
            h * share if all(p.kind not in ("strips", "points") for p in row) else h
            for row, h in zip(rows, heights, strict=True)
        ], close
    raise UsageError(
        f"this figure would be {total:.1f} inches tall; a page has {TALLEST:g}. Show less of it, choose width"
        ' "double" or a smaller font_size, or give a height.'
    )


def _height(panel: Panel, found: Drawing | None, style: Style, width: float, close: int) -> float:
    line = style.font_size / 72
    if found is None:
        return line * ((1.5 if close else 1.9) * panel.frame[panel.y].nunique() + 1.5)
    if found.dots:
        small = _row_size(style, close) / 72
        labels = _row_labels(found, style, close)
        named = 1 if style.inches > BESIDE else len(found.named)
        below = 6 * line + (1.95 * line * (named - 1) if named > 2 else 0)  # the axis, and what a long legend takes
        return sum(0.6 * line + 1.2 * small * (1 + text.count("\n")) for text in labels) + below
    if found.cells is not None:
        ny, nx = found.cells.values.shape
        if panel.square:
            return min(0.85 * width, 3.4)
        return min(1.4 * width, max(1.2, (width - 1.1) * ny / max(nx, 1) + 0.6), 4.0)
    crowd = len(found.named)
    return 0.72 * width + (line * 0.7 * crowd if crowd > CROWDED else 0)


def _axis(axis: Axis, set_label: Any, set_limits: Any, set_ticks: Any, set_scale: Any) -> None:
    if axis.log:
        set_scale("log")
    set_label(visible(axis.label), parse_math=False)
    set_ticks([at for at, _ in axis.ticks], [visible(text) for _, text in axis.ticks])
    if axis.log:
        set_ticks([], minor=True)
    set_limits(*axis.range)


def _axes(ax: Axes, found: Drawing) -> None:
    """Limits, ticks and labels as the drawing says."""
    assert found.x is not None
    assert found.y is not None
    _axis(found.x, ax.set_xlabel, ax.set_xlim, ax.set_xticks, ax.set_xscale)
    _axis(found.y, ax.set_ylabel, ax.set_ylim, ax.set_yticks, ax.set_yscale)
    for tick in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        tick.set_parse_math(False)


def _lines(ax: Axes, found: Drawing) -> None:
    """Curves per series; references are dashed. Series are told apart by dash as well as colour."""
    for c in found.curves:
        how: dict[str, Any] = {"drawstyle": "steps-post"} if c.steps else {}
        ax.plot(
            c.x,
            c.y,
            linestyle=DASH[c.dash],
            color=c.colour,
            label=visible(c.legend) if c.legend else None,
            linewidth=0.9 if c.thin else 1.2,
            marker="o" if c.marks else None,
            markersize=2.2,
            **how,
        )
        if c.low is not None and c.high is not None:
            ax.fill_between(c.x, c.low, c.high, color=c.colour, alpha=0.18, linewidth=0)
    _axes(ax, found)
    if found.named:
        outside: dict[str, Any] = {}
        if len(found.named) > CROWDED:
            outside = {"loc": "lower left", "bbox_to_anchor": (-0.1, 1.0), "ncols": 2, "columnspacing": 1.0}
        ax.legend(handlelength=2.2, borderaxespad=0.2, labelspacing=0.3, **outside)


def _points(ax: Axes, found: Drawing, style: Style, close: int) -> None:
    """One row per category, its value and interval as a bar; first category on top."""
    assert found.y is not None
    for d in found.dots:
        bars = None
        if d.low is not None and d.high is not None:
            bars = np.nan_to_num(np.abs(np.stack([d.x - d.low, d.high - d.x])))
        ax.errorbar(
            d.x,
            d.y,
            xerr=bars,
            fmt=SYMBOL[d.symbol],
            color=d.colour,
            markersize=3.5,
            elinewidth=1,
            capsize=2,
            label=visible(d.name) if d.name else None,
        )
    _axes(ax, found)
    ax.set_yticks([at for at, _ in found.y.ticks], _row_labels(found, style, close), fontsize=_row_size(style, close))
    for tick in ax.get_yticklabels():
        tick.set_parse_math(False)
    ax.grid(axis="x", color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)
    if found.named:
        ax.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(found.named) if style.inches > BESIDE else 1,
            borderaxespad=0,
        )


def _row_size(style: Style, close: int) -> float:
    """Points of the labels of rows: those of other labels, or a little less."""
    return style.font_size - 1 if not close else max(5.0, style.font_size - 2)


def _row_labels(found: Drawing, style: Style, close: int) -> list[str]:
    """Labels of the rows, in lines that leave more than half of the width to the axes; cut to two lines or one where
    the figure would be too tall.
    """
    assert found.y is not None
    room = int(0.44 * style.inches * 72 / (0.55 * _row_size(style, close)))
    texts = [visible(text) for _, text in found.y.ticks]
    lines = [[text] if len(text) <= room else textwrap.wrap(text, room) for text in texts]
    most = {2: 2, 3: 1}.get(close, 99)
    return ["\n".join([*x[: most - 1], clip(" ".join(x[most - 1 :]), room)] if len(x) > most else x) for x in lines]


def _heat(ax: Axes, found: Drawing, cells: Cells, style: Style) -> None:
    """A matrix in its colours, with its numbers where they fit."""
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    names = cells.colours(paper=True)
    colours = ListedColormap(names) if cells.ramp else LinearSegmentedColormap.from_list("cells", names)
    image = ax.imshow(
        cells.values, cmap=colours, aspect="auto", origin="lower", vmin=cells.low, vmax=cells.high, interpolation="none"
    )
    _axes(ax, found)
    width = style.inches if style.inches <= 5 else style.inches / 2
    if cells.texts and cells.values.size:
        longest = max(len(text) for row in cells.texts for text in row)
        if 0.68 * width / cells.values.shape[1] >= (longest + 1) * 0.55 * (style.font_size - 2) / 72:
            for (i, j), v in np.ndenumerate(cells.values):
                shade = image.cmap(image.norm(v))[:3] if np.isfinite(v) else (1, 1, 1)
                light = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 0.5
                ink = "black" if light else "white"
                ax.text(j, i, cells.texts[i][j], ha="center", va="center", fontsize=style.font_size - 2, color=ink)
    for side in ax.spines.values():
        side.set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    bar.set_label(visible(cells.label), parse_math=False)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _strips(ax: Axes, panel: Panel, style: Style) -> None:
    """Rows of tokens in a fixed-width face, shaded in the steps of the pages, each centred on its strongest token."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Rectangle

    font = FontProperties(family="DejaVu Sans Mono", size=style.font_size - 1)
    assert panel.value is not None
    top = panel.top or (float(np.nanmax(panel.frame[panel.value].to_numpy(float))) if len(panel.frame) else 1.0)
    cell = 0.602 * (style.font_size - 1) / 72  # inches per character of DejaVu Sans Mono
    room = int((style.inches - 0.2) / cell)
    rows = list(panel.frame.groupby(panel.y, sort=False))
    for r, (_, part) in enumerate(rows):
        texts = [visible(str(t), "DejaVu Sans Mono") for t in part[panel.x]]
        values = part[panel.value].to_numpy(float)
        second = part[panel.under].to_numpy(float) if panel.under else np.zeros(len(part))
        y = len(rows) - 1 - r
        x = 0
        strongest = values if panel.centre is None else part[panel.centre].to_numpy(float)
        for i in _fitting(texts, int(np.nanargmax(strongest)) if np.isfinite(strongest).any() else 0, room):
            width = len(texts[i])
            if values[i] > 0 and top > 0:
                shade = RAMP[level(float(values[i]), top)]
                ax.add_patch(Rectangle((x, y + 0.12), width, 0.8, facecolor=shade, linewidth=0))
            if second[i] > 0:
                thick = 0.05 * (1 + level(float(second[i]), panel.under_top or 0.0) * 3 // LEVELS)
                ax.add_patch(Rectangle((x, y + 0.12 - thick), width, thick, facecolor=UNDERLINE, linewidth=0))
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


def _scatter(ax: Axes, found: Drawing) -> None:
    """A dot per row, coloured by series or value; positions mean nothing by themselves, so there are no axes."""
    from matplotlib.colors import LinearSegmentedColormap

    if found.shade is not None:
        grey = LinearSegmentedColormap.from_list("shade", [(0.478, 0.478, 0.478, 0.10), (0.478, 0.478, 0.478, 0.45)])
        ax.pcolormesh(
            found.shade.x, found.shade.y, np.ma.masked_invalid(found.shade.counts), cmap=grey, rasterized=True
        )
    dots = None
    for cloud in found.clouds:
        how: dict[str, Any] = {"color": cloud.colour}
        if cloud.values is not None:
            cmap = LinearSegmentedColormap.from_list("cloud", cloud.colours()).with_extremes(bad="#BBBBBB")
            how = {"c": np.ma.masked_invalid(cloud.values), "cmap": cmap, "vmin": cloud.low, "vmax": cloud.high}
            how["plotnonfinite"] = True
        dots = ax.scatter(
            cloud.x,
            cloud.y,
            s=2,
            alpha=0.6,
            linewidths=0,
            label=visible(cloud.name),
            rasterized=len(cloud.x) > 5000,
            **how,
        )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_axis_off()
    if dots is not None and found.clouds[0].values is not None:
        bar = ax.figure.colorbar(dots, ax=ax, pad=0.02)
        bar.set_label(visible(found.clouds[0].label), parse_math=False)
        bar.outline.set_visible(False)  # type: ignore[operator]
    elif found.named:
        ax.legend(markerscale=3, loc="upper left", borderaxespad=0)
