"""What a score is, each with its 95 % interval. Small n keeps a width: no interval here closes at 0 or 1.

- balanced accuracy of yes/no answers (detection, fuzzing): the mean of the shares of positives and of negatives that
  were told right; interval by MOVER (Zou & Donner 2008, Stat. Med. 27:1693) from Wilson's intervals of both
- area under the ROC curve (similarity): interval by method 5 of Newcombe (2006, Stat. Med. 25:559)
- correlation of simulated and true activations over all tokens of all excerpts (Bills et al. 2023, *Language models can
  explain neurons in language models*; delphi's group of all excerpts): bootstrap over excerpts
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.stats import interval95, resample_weights, wilson

Z = 1.959963984540054  # of 95 %


@dataclass(frozen=True)
class Score:
    """A score with what it rests on; NaN where it could not be measured. ``chance``: what guessing gives."""

    value: float
    low: float
    high: float
    chance: float
    n_positive: int
    n_negative: int
    precision: float = math.nan
    recall: float = math.nan
    f1: float = math.nan


def balanced_accuracy(said: Sequence[bool], truth: Sequence[bool]) -> Score:
    """Of yes/no answers, with precision, recall and F1 (0 over nothing, as delphi has them)."""
    yes, right = np.asarray(said, bool), np.asarray(truth, bool)
    p, n = int(right.sum()), int((~right).sum())
    if not p or not n:
        return Score(math.nan, math.nan, math.nan, 0.5, p, n)
    hit, quiet = int((yes & right).sum()), int((~yes & ~right).sum())
    recall, a_low, a_high = _share(hit, p)
    spared, b_low, b_high = _share(quiet, n)
    value = (recall + spared) / 2
    low = value - math.hypot(recall - a_low, spared - b_low) / 2
    high = value + math.hypot(a_high - recall, b_high - spared) / 2
    precision = hit / int(yes.sum()) if yes.any() else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Score(value, low, high, 0.5, p, n, precision, recall, f1)


def _share(hits: int, n: int) -> tuple[float, float, float]:
    found = wilson(hits, n, "excerpts")
    return found.value, float(found.low or 0.0), float(found.high or 0.0)


def roc_area(likeness: Sequence[float], truth: Sequence[bool]) -> Score:
    """Probability that a positive is more like the label than a negative, ties counting half."""
    from scipy.optimize import brentq
    from scipy.stats import rankdata

    right = np.asarray(truth, bool)
    p, n = int(right.sum()), int((~right).sum())
    if not p or not n:
        return Score(math.nan, math.nan, math.nan, 0.5, p, n)
    ranks = rankdata(np.asarray(likeness, np.float64))
    value = float((ranks[right].sum() - p * (p + 1) / 2) / (p * n))

    def spread(theta: float) -> float:
        pairs = (p + n) / 2 - 1
        return theta * (1 - theta) * (1 + pairs * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (p * n)

    def gap(theta: float) -> float:
        return (value - theta) ** 2 - Z**2 * spread(theta)

    near = 1e-9  # at 0 and 1 the equation holds trivially: the end that is meant lies beside it
    low = 0.0 if value <= near else float(brentq(gap, 0.0, value - near))
    high = 1.0 if value >= 1 - near else float(brentq(gap, value + near, 1.0))
    return Score(value, low, high, 0.5, p, n)


def correlation(
    simulated: Sequence[np.ndarray], actual: Sequence[np.ndarray], truth: Sequence[bool], *, seed: int = 0
) -> Score:
    """Pearson's r over the tokens of all excerpts together; NaN where one side does not vary."""
    right = np.asarray(truth, bool)
    p, n = int(right.sum()), int((~right).sum())
    sums = np.array(
        [
            [len(x), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()]
            for x, y in zip(
                (np.asarray(s, np.float64) for s in simulated), (np.asarray(a, np.float64) for a in actual), strict=True
            )
        ]
    ).reshape(-1, 6)
    value = float(_pearson(sums.sum(0)[None])[0]) if len(sums) else math.nan
    low, high = (math.nan, math.nan)
    if len(sums) > 1 and math.isfinite(value):
        low, high = interval95(_pearson(resample_weights(len(sums), seed=seed) @ sums))
    return Score(value, low, high, 0.0, p, n)


def _pearson(s: np.ndarray) -> np.ndarray:
    """[R] from sums [R, 6] of 1, x, y, x², y², xy."""
    count, x, y, xx, yy, xy = s.T
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.sqrt(np.maximum(count * xx - x * x, 0) * np.maximum(count * yy - y * y, 0))
        return np.where(below > 0, (count * xy - x * y) / below, np.nan)
