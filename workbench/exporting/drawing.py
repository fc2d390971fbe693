"""What a panel looks like, decided once for every renderer: limits, ticks, colours, dashes, order of rows and columns.

matplotlib (:mod:`workbench.exporting.render`) and the pages' Plotly draw what :func:`drawing` says and decide nothing
themselves but sizes, so that an exported figure is the one that was seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.exporting.axes import Axis, category_axis, numeric_axis
from workbench.exporting.figures import Panel
from workbench.exporting.palette import DASHES, PALETTES, SYMBOLS, colour_map
from workbench.markup.text import visible
from workbench.markup.tokens import clip

NUMBERED = (16, 16)  # a matrix of at most so many rows and columns may show its numbers
MARKED = 40  # curves of at most so many points mark them
APART, SPREAD = 0.22, 0.8  # of a row: between the points of two series, and of all of them at most


@dataclass(frozen=True)
class Curve:
    """One series of a line or staircase; ``legend`` is its name with its n, and its largest value where it is cut."""

    name: str
    legend: str
    colour: str
    dash: str  # "solid" or one of palette.DASHES
    thin: bool  # a reference
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    steps: bool
    marks: bool


@dataclass(frozen=True)
class Dots:
    """One series of values with intervals along the rows of categories (``y`` = row, shifted by series)."""

    name: str
    colour: str
    symbol: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


@dataclass(frozen=True)
class Cells:
    """A matrix [rows, columns], first row at the bottom. ``columns`` and ``rows`` are what stands at 0, 1, …"""

    values: np.ndarray
    columns: list[Any]
    rows: list[Any]
    low: float
    high: float
    signed: bool
    ramp: bool
    palette: str
    label: str
    texts: list[list[str]] | None  # the numbers, where they are few

    def colours(self, *, paper: bool) -> tuple[str, ...]:
        """Equally spaced colours from ``low`` to ``high``; a ramp's are steps, the others run into each other."""
        return colour_map(self.palette, signed=self.signed, ramp=self.ramp, paper=paper)

    def step(self, value: float) -> int:
        """Which colour of the ramp a value has."""
        n = len(self.colours(paper=True))
        return max(0, min(n - 1, int(n * (value - self.low) / (self.high - self.low))))


@dataclass(frozen=True)
class Cloud:
    """Points of one series in the plane: of one colour, or coloured by ``values`` from ``low`` to ``high``."""

    name: str
    colour: str
    x: np.ndarray
    y: np.ndarray
    values: np.ndarray | None
    low: float
    high: float
    label: str
    palette: str
    rows: pd.DataFrame

    def colours(self) -> tuple[str, ...]:
        """Equally spaced colours from ``low`` to ``high``."""
        return colour_map(self.palette, signed=False, ramp=False, paper=True)


@dataclass(frozen=True)
class Shade:
    """How many points lie where: log10 of one more than their number [rows, columns], missing where there are none."""

    x: np.ndarray  # [columns + 1] edges
    y: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Drawing:
    """All that is drawn inside one pair of axes; a scatter has none."""

    title: str
    x: Axis | None
    y: Axis | None
    curves: tuple[Curve, ...] = ()
    dots: tuple[Dots, ...] = ()
    cells: Cells | None = None
    clouds: tuple[Cloud, ...] = ()
    shade: Shade | None = None

    @property
    def named(self) -> list[str]:
        """Entries of the legend; none where there is one series."""
        names = [*(c.legend for c in self.curves), *(d.name for d in self.dots), *(c.name for c in self.clouds)]
        return [n for n in names if n] if len(names) > 1 else []


def drawing(panel: Panel, palette: str = "okabe-ito") -> Drawing:
    """How ``panel`` is drawn; strips of text are not drawn here (:mod:`workbench.markup.tokens` shades them)."""
    return _DRAWINGS[panel.kind](panel, palette)


def series_of(panel: Panel) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, rows) of every series in the order of the frame."""
    if panel.series is None:
        yield "", panel.frame
    else:
        for name, part in panel.frame.groupby(panel.series, sort=False):
            yield str(name), part


def cap(panel: Panel) -> float | None:
    """Top of the axis where one tall series (chance, usually) would flatten all others; None where the largest fits."""
    if panel.kind != "step" or panel.series is None or panel.log_y or panel.y_range:
        return None
    tops = sorted(float(part[panel.y].max()) for _, part in series_of(panel))
    return 1.5 * tops[-2] if len(tops) > 1 and tops[-1] > 3 * tops[-2] > 0 else None


def _lines(panel: Panel, palette: str) -> Drawing:
    colours, top = PALETTES[palette], cap(panel)
    curves, solid, dashed = [], 0, 0
    for name, part in series_of(panel):
        reference = name in panel.dashed
        again = solid // len(colours)  # more series than colours: the next round is dashed, too
        dash = DASHES[dashed % len(DASHES)] if reference else DASHES[(again - 1) % len(DASHES)] if again else "solid"
        colour = colours[(len(colours) - 1 - dashed if reference else solid) % len(colours)]
        dashed, solid = dashed + reference, solid + (not reference)
        band = panel.low is not None and panel.high is not None and bool(part[panel.low].notna().any())
        curves.append(
            Curve(
                name,
                _legend(panel, name, part, top),
                colour,
                dash,
                reference,
                part[panel.x].to_numpy(np.float64),
                part[panel.y].to_numpy(np.float64),
                part[panel.low].to_numpy(np.float64) if band else None,
                part[panel.high].to_numpy(np.float64) if band else None,
                panel.kind == "step",
                panel.kind == "line" and len(part) <= MARKED,
            )
        )
    x = numeric_axis(
        panel.x_label or panel.x, panel.frame[panel.x].to_numpy(np.float64), log=panel.log_x, ticks=panel.x_ticks
    )
    heights = np.concatenate([np.empty(0), *(v for c in curves for v in (c.y, c.low, c.high) if v is not None)])
    y = numeric_axis(
        panel.y_label or panel.y,
        heights,
        log=panel.log_y,
        limits=panel.y_range or ((0.0, top) if top else None),
        zero=True,
        floor=panel.kind == "step",
    )
    return Drawing(panel.title, x, y, curves=tuple(curves))


def _legend(panel: Panel, name: str, part: pd.DataFrame, top: float | None) -> str:
    n = part["n"].unique().tolist() if "n" in part.columns else []
    size = f" (n {int(n[0]):,})" if len(n) == 1 and n[0] > 1 and "(n " not in name else ""
    cut = f", up to {part[panel.y].max():.2g}" if top and part[panel.y].max() > top else ""
    return visible(f"{name}{size}{cut}") if panel.series is not None else ""


def _points(panel: Panel, palette: str) -> Drawing:
    names = list(dict.fromkeys(panel.frame[panel.x].astype(str)))
    at = {name: j for j, name in enumerate(names)}
    groups = list(series_of(panel))
    apart = min(APART, SPREAD / max(1, len(groups) - 1))
    found = []
    for s, (name, part) in enumerate(groups):
        rows = np.array([at[v] for v in part[panel.x].astype(str)], dtype=np.float64)
        band = panel.low is not None and panel.high is not None
        found.append(
            Dots(
                visible(name),
                PALETTES[palette][s % len(PALETTES[palette])],
                SYMBOLS[s % len(SYMBOLS)],
                part[panel.y].to_numpy(np.float64),
                rows + apart * (s - (len(groups) - 1) / 2),
                part[panel.low].to_numpy(np.float64) if band else None,
                part[panel.high].to_numpy(np.float64) if band else None,
            )
        )
    ends = np.concatenate([np.empty(0), *(v for d in found for v in (d.x, d.low, d.high) if v is not None)])
    x = numeric_axis(panel.y_label or panel.y, ends, log=panel.log_y, limits=panel.y_range, zero=True)
    y = category_axis(panel.x_label, names, [visible(n) for n in names], shown=len(names) or 1, down=True)
    return Drawing(panel.title, x, y, dots=tuple(found))


def _heat(panel: Panel, palette: str) -> Drawing:
    assert panel.value is not None
    columns, rows = _places(panel.frame[panel.x]), _places(panel.frame[panel.y])
    at_x, at_y = ({v: j for j, v in enumerate(names)} for names in (columns, rows))
    values = np.full((len(rows), len(columns)), np.nan)
    for x, y, v in zip(panel.frame[panel.x], panel.frame[panel.y], panel.frame[panel.value], strict=True):
        values[at_y[y], at_x[x]] = np.nan if pd.isna(v) else float(v)
    known = values[np.isfinite(values)]
    signed = panel.diverging or bool(len(known) and known.min() < 0)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if signed:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    if high == low:  # one value only: its scale starts at zero, and ends nowhere a share or a correlation cannot go
        low, high = min(0.0, low), max(0.0, high) or 1.0
    low, high = panel.z_range or (low, high)
    few = values.shape[0] <= NUMBERED[0] and values.shape[1] <= NUMBERED[1]
    cells = Cells(
        values,
        columns,
        rows,
        low,
        high,
        signed,
        panel.ramp,
        palette,
        visible(panel.value_label or panel.value),
        _texts(values) if few else None,
    )
    axes = []
    for label, names, ticks in (
        (panel.x_label or panel.x, columns, panel.x_ticks),
        (panel.y_label or panel.y, rows, panel.y_ticks),
    ):
        axis = category_axis(label.strip(), names, [visible(_name(v)) for v in names], shown=24)
        axes.append(Axis(axis.label, axis.range, False, ticks) if ticks else axis)
    return Drawing(panel.title, axes[0], axes[1], cells=cells)


def _places(values: pd.Series) -> list[Any]:
    """What stands along an axis of a matrix: every whole number from the smallest to the largest, other numbers in
    their order, words as they come.
    """
    found = list(dict.fromkeys(values))
    if not found or not all(isinstance(v, int | float | np.integer | np.floating) for v in found):
        return found
    if all(float(v).is_integer() for v in found) and max(found) - min(found) < 10_000:
        return list(range(int(min(found)), int(max(found)) + 1))
    return sorted(found)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _texts(values: np.ndarray) -> list[list[str]]:
    """The numbers of a matrix, all with the same digits: two behind the point, and where all are small as many as give
    the largest two that count.
    """
    most = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
    whole = bool(np.all(values[np.isfinite(values)] == np.round(values[np.isfinite(values)])))
    small = min(4, 1 - math.floor(math.log10(most))) if 0 < most < 0.1 else 2
    digits = 0 if whole or most >= 100 else 1 if most >= 10 else small
    return [
        ["–" if not np.isfinite(v) else f"{round(float(v), digits) + 0.0:.{digits}f}" for v in row] for row in values
    ]


def _scatter(panel: Panel, palette: str) -> Drawing:
    colours = PALETTES[palette]
    values = None if panel.value is None else panel.frame[panel.value].to_numpy(np.float64)
    known = values[np.isfinite(values)] if values is not None else np.empty(0)
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    clouds = [
        Cloud(
            visible(clip(name, 60)),
            colours[j % len(colours)],
            part[panel.x].to_numpy(np.float64),
            part[panel.y].to_numpy(np.float64),
            None if panel.value is None else part[panel.value].to_numpy(np.float64),
            low,
            high if high > low else low + 1.0,
            visible(panel.value_label or panel.value or ""),
            palette,
            part,
        )
        for j, (name, part) in enumerate(series_of(panel))
    ]
    return Drawing(panel.title, None, None, clouds=tuple(clouds), shade=_shade(panel))


def _shade(panel: Panel) -> Shade | None:
    if panel.backdrop is None:
        return None
    counts, x, y = np.histogram2d(panel.backdrop[panel.x], panel.backdrop[panel.y], bins=64)
    return Shade(x, y, np.where(counts.T > 0, np.log10(1 + counts.T), np.nan))


_DRAWINGS = {"line": _lines, "step": _lines, "points": _points, "heat": _heat, "scatter": _scatter}
