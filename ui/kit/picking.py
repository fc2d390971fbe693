"""Which latents of a map lie inside what a reader drew: boxes and lassos against all points, drawn or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def inside(points: pd.DataFrame, boxes: Sequence[dict[str, Any]], lassos: Sequence[dict[str, Any]]) -> np.ndarray:
    """Which rows of ``points`` (``x``, ``y``) lie in any of the shapes, each an ``x`` and a ``y`` sequence: bool [points].

    A box is two corners; a lasso is a polygon, inside by the even-odd rule. Shapes that are neither hold nothing.
    """
    x, y = points["x"].to_numpy(dtype=np.float64), points["y"].to_numpy(dtype=np.float64)
    found = np.zeros(len(x), dtype=bool)
    for shape, corners in (*((b, 2) for b in boxes), *((s, 3) for s in lassos)):
        a, b = (np.asarray(shape.get(k) or (), dtype=np.float64) for k in ("x", "y"))
        if len(a) < corners or len(a) != len(b):
            continue
        near = np.flatnonzero((x >= a.min()) & (x <= a.max()) & (y >= b.min()) & (y <= b.max()))
        found[near if corners == 2 else near[_in_polygon(x[near], y[near], a, b)]] = True
    return found


def _in_polygon(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Even-odd rule: whether a ray to the right of each point crosses the polygon's sides an odd number of times."""
    odd = np.zeros(len(x), dtype=bool)
    for a0, b0, a1, b1 in zip(a, b, np.roll(a, -1), np.roll(b, -1), strict=True):
        if b0 != b1:
            odd ^= ((b0 > y) != (b1 > y)) & (x < (a1 - a0) * (y - b0) / (b1 - b0) + a0)
    return odd
