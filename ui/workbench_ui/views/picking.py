"""Which latents of a map lie inside what a reader drew: boxes and lassos against all points, drawn or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd


def inside(points: pd.DataFrame, boxes: Sequence[dict[str, Any]], lassos: Sequence[dict[str, Any]]) -> np.ndarray:
    """Which rows of ``points`` (``x``, ``y``) lie in any of the shapes, each an ``x`` and a ``y`` sequence: bool
    [points].

    A box is two corners; a lasso is a polygon. Shapes that are neither hold nothing.
    """
    from matplotlib.path import Path

    x, y = points["x"].to_numpy(dtype=np.float64), points["y"].to_numpy(dtype=np.float64)
    found = np.zeros(len(x), dtype=bool)
    for shape, corners in (*((b, 2) for b in boxes), *((s, 3) for s in lassos)):
        a, b = (np.asarray(shape.get(k) or (), dtype=np.float64) for k in ("x", "y"))
        if len(a) < corners or len(a) != len(b):
            continue
        near = np.flatnonzero((x >= a.min()) & (x <= a.max()) & (y >= b.min()) & (y <= b.max()))
        found[near if corners == 2 else near[Path(np.c_[a, b]).contains_points(np.c_[x[near], y[near]])]] = True
    return found
