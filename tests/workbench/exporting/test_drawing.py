"""What is drawn: the numbers in a matrix, and the room that rows have."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd

from workbench.exporting import Style
from workbench.exporting.drawing import _texts
from workbench.exporting.figures import FigureData, Panel
from workbench.exporting.render import draw


def test_small_numbers_in_cells_keep_two_digits_that_count() -> None:
    def texts(*values: float) -> list[str]:
        found = _texts(np.array([values]))
        return found[0]

    assert texts(0.0069, 0.0004, math.nan) == ["0.0069", "0.0004", "–"]
    assert texts(0.98, 0.004) == ["0.98", "0.00"] and texts(12.34) == ["12.3"] and texts(3.0, 0.0) == ["3", "0"]
    assert texts(1e-9) == ["0.0000"]  # a cell has no room for more


def test_names_of_many_series_do_not_squeeze_the_rows() -> None:
    frame = pd.DataFrame([{"row": r, "of": s, "value": 0.5} for r in ("a", "b", "c") for s in ("k", "l", "m", "n")])
    panel = Panel(kind="points", frame=frame, x="row", y="value", series="of")
    made = FigureData(panels=[panel], caption="x", table=frame, n={}, inputs=[])
    heights = {}
    for width in ("single", "double"):  # below each other, and beside each other
        figure = draw(made, Style(width=width))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # where rows have no room at all, matplotlib gives its layout up and says so
            figure.canvas.draw()
        heights[width] = figure.axes[0].get_position().height * figure.get_figheight()
    assert heights["single"] > 0.8 * heights["double"] > 0.2  # inches
