"""One number from the card, and a word for it: only what planted worlds have calibrated.

The score is the share of planted latents that worlds of known features hold among latents with such evidence: a
logistic function of ``FEATURES``, fitted by ``workbench benchmark trust``, which also shows on other worlds that it
tells planted latents from junk and means what it says (docs/benchmarks-trust.md). A world has no text, no labels and no
loss, so those fields are on the card and not in the score; nor does the score know whether a latent is a mere token
detector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.results.trust import LIMITS, MIXED, WEAK, WELL

FEATURES = ("seed_r", "agreement", "absorbed_share")


@dataclass(frozen=True)
class Weights:
    """Of a logistic function: the intercept, and one weight per feature."""

    intercept: float
    features: dict[str, float]

    def score(self, table: pd.DataFrame) -> np.ndarray:
        """[n] between 0 and 1; NaN where a feature is not there."""
        z = self.intercept + features_of(table) @ np.array([self.features[name] for name in FEATURES])
        return np.asarray(1 / (1 + np.exp(-z)))


WEIGHTS = Weights(-6.951, {"seed_r": 9.510, "agreement": 2.337, "absorbed_share": -3.406})
CALIBRATION = "on planted worlds: workbench benchmark trust"


def features_of(table: pd.DataFrame) -> np.ndarray:
    """[n, features] float64."""
    return np.stack([table[name].to_numpy(dtype=np.float64) for name in FEATURES], axis=1)


def scored(table: pd.DataFrame) -> tuple[np.ndarray, list[str | None]]:
    """(score, word) of every row of a table of cards; neither where a feature was not computed."""
    score = WEIGHTS.score(table)
    return score, [word_of(s) for s in score.tolist()]


def word_of(score: float) -> str | None:
    """What a score is called."""
    if not np.isfinite(score):
        return None
    return WELL if score >= LIMITS[1] else MIXED if score >= LIMITS[0] else WEAK
