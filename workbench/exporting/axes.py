"""Limits and ticks of axes, chosen once, so that paper and screen show the same stretch with the same marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

MOST_TICKS = 7
PAD = 0.04  # of the data's stretch, at either end


@dataclass(frozen=True)
class Axis:
    """One axis: its label, the stretch it shows in data units, and its marks as (place, text)."""

    label: str
    range: tuple[float, float]
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()


def numeric_axis(
    label: str,
    values: Any,
    *,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    ticks: tuple[tuple[float, str], ...] = (),
    zero: bool = False,
    floor: bool = False,
) -> Axis:
    """An axis over ``values`` (NaN is passed over).

    ``limits`` overrule the data. With ``zero`` the stretch includes zero unless that would waste most of it, with
    ``floor`` it begins at zero exactly.
    """
    v = np.asarray(values, dtype=np.float64).ravel()
    v = v[np.isfinite(v) & (v > 0)] if log else v[np.isfinite(v)]
    lo, hi = limits or ((float(v.min()), float(v.max())) if len(v) else (1.0, 10.0) if log else (0.0, 1.0))
    if limits is None and not log:
        if floor or (zero and lo > 0 and lo < 0.6 * hi):
            lo = 0.0
        elif zero and hi < 0 and hi > 0.6 * lo:
            hi = 0.0
        room = (hi - lo) or abs(hi) or 1.0
        lo, hi = (lo if floor else lo - PAD * room), hi + PAD * room
    elif limits is None:
        room = (hi / lo) ** PAD if hi > lo else 2.0
        lo, hi = lo / room, hi * room
    axis = Axis(label, (lo, hi), log, ticks)
    return axis if ticks else replace(axis, ticks=log_ticks(lo, hi) if log else linear_ticks(lo, hi, _whole(v)))


def category_axis(
    label: str, names: Sequence[Any], texts: Sequence[str], *, shown: int = 24, down: bool = False
) -> Axis:
    """An axis of rows or columns at 0, 1, …; beyond ``shown`` of them only every n-th is named. ``down`` puts the first
    on top.
    """
    every = max(1, -(-len(names) // shown))
    ticks = tuple((float(j), texts[j]) for j in range(0, len(names), every))
    ends = (-0.5, max(0, len(names) - 1) + 0.5)
    return Axis(label, (ends[1], ends[0]) if down else ends, False, ticks)


def _whole(v: np.ndarray) -> bool:
    return bool(len(v)) and bool(np.all(v == np.round(v)))


def linear_ticks(lo: float, hi: float, whole: bool = False) -> tuple[tuple[float, str], ...]:
    """Marks at multiples of 1, 2 or 5 times a power of ten inside [lo, hi]; only whole numbers where the data are."""
    if not (math.isfinite(lo) and math.isfinite(hi)) or hi <= lo:
        return ((lo, text_of(lo)),)
    raw = (hi - lo) / (MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    places = [round(k * step, 12) + 0.0 for k in range(first, last + 1)]
    return tuple((p, text_of(p)) for p in places)


def log_ticks(lo: float, hi: float) -> tuple[tuple[float, str], ...]:
    """Powers of ten inside [lo, hi], or 1, 2, 5 times them where there are fewer than three, or where there is none of
    those either (between 2.1 and 4.9) the marks of a linear axis.
    """
    first, last = math.floor(math.log10(lo)), math.ceil(math.log10(hi))
    tens = [10.0**k for k in range(first, last + 1) if lo <= 10.0**k <= hi]
    if len(tens) < 3:
        tens = [m * 10.0**k for k in range(first, last + 1) for m in (1, 2, 5) if lo <= m * 10.0**k <= hi]
    if not tens:
        return linear_ticks(lo, hi)
    every = -(-len(tens) // MOST_TICKS)
    return tuple((p, text_of(p)) for p in tens[::every])


def text_of(value: float) -> str:
    """``20,000``, ``0.5``, ``1e-05``."""
    return f"{value:,.10g}" if 1e-4 <= abs(value) < 1e7 or value == 0 else f"{value:.3g}"
