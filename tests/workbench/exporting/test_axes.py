"""Axes: every stretch gets marks, and they lie inside it."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.exporting.axes import log_ticks, numeric_axis


@pytest.mark.parametrize("values", [(24.0, 30.0), (2.2, 4.6), (3.0, 3.0), (6e-5, 9e-5), (5.3, 5.31), (1.0, 1e6)])
def test_a_logarithmic_axis_has_marks_however_narrow(values: tuple[float, float]) -> None:
    axis = numeric_axis("activation", np.array(values), log=True)
    lo, hi = axis.range
    assert axis.ticks and all(lo <= at <= hi for at, _ in axis.ticks)
    assert log_ticks(*values)


def test_powers_of_ten_come_first_then_1_2_5_then_a_linear_axis() -> None:
    assert [t for _, t in log_ticks(1, 100)] == ["1", "10", "100"]
    assert [t for _, t in log_ticks(1, 6)] == ["1", "2", "5"]
    assert [t for _, t in log_ticks(24, 30)] == ["24", "25", "26", "27", "28", "29", "30"]
