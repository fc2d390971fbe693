"""How well a latent's rule tells where it fires, on text the rule was not made from, and on near misses.

*Held out*: precision = P(fires strongly | rule holds), recall = P(rule holds | fires strongly), F1 of both; "strongly"
is above a quarter of the latent's maximum, as in :mod:`workbench.analysis.explain.rules`. Chance is the F1 of as many
tokens at random.

*Hard negatives*: as many silent tokens as there are strong ones, those whose window of tokens shares most with the
windows of the strong ones (a shared token at the peak counts as much as a whole window). The number is balanced
accuracy: a rule that only names the token scores 0.5, however high it stands on ordinary text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.correlation import Floats, Ints
from workbench.analysis.explain.holds import Rules
from workbench.analysis.explain.rules import STRONG
from workbench.analysis.latents.encoded import Codes

WINDOW = 8  # tokens up to the one at hand that near misses share
MAX_POSITIVES = 200  # strong tokens of a latent that hard negatives are looked for
RATIOS = ("f1", "f1_chance", "precision", "recall", "hard_accuracy", "hard_precision", "hard_recall")


@dataclass(frozen=True)
class LabelScores:
    """Arrays [F]; NaN where a ratio is over nothing (F1 is 0 where the rule names nothing right). ``n_rule``: tokens on
    which the rule holds; ``n_strong``: on which the latent fires strongly; ``n_hard``: hard negatives, as many as
    positives beside them.
    """

    f1: Floats
    f1_chance: Floats
    precision: Floats
    recall: Floats
    hard_accuracy: Floats
    hard_precision: Floats
    hard_recall: Floats
    n_rule: Ints
    n_strong: Ints
    n_hard: Ints


def label_scores(codes: Codes, table: pd.DataFrame, vocab: list[str], rows: np.ndarray) -> LabelScores:
    """Score the best rule of every latent on ``rows`` (bool [N]) of ``codes``.

    Args:
        table: ``labels.parquet`` of the rules. rows: those the rules were not chosen on.
    """
    f, v = codes.n_latents, len(vocab)
    rules = Rules(codes, vocab)
    windows = _windows(codes)
    peak = np.zeros(f, np.float32)
    np.maximum.at(peak, codes.latent, codes.value)
    out: dict[str, Any] = {name: np.full(f, np.nan) for name in RATIOS}
    counts: dict[str, Any] = {name: np.zeros(f, np.int64) for name in ("n_rule", "n_strong", "n_hard")}
    total = max(1, int(rows.sum()))
    inside = np.flatnonzero(rows)
    known = table.set_index("latent")
    for i in known.index[known["family"].notna()].tolist():
        row = known.loc[i]
        holds = rules.holds(str(row["family"]), [int(x) for x in row["keys"]], str(row["where"] or ""))
        at, value = codes.of(int(i))
        strong = at[(value >= STRONG * peak[i]) & rows[at]]
        hit = int(holds[strong].sum())
        n_rule = int(holds[inside].sum())
        counts["n_rule"][i], counts["n_strong"][i] = n_rule, len(strong)
        out["precision"][i] = hit / n_rule if n_rule else np.nan
        if not len(strong):
            continue
        out["recall"][i] = hit / len(strong)
        out["f1"][i] = 2 * hit / (n_rule + len(strong))
        out["f1_chance"][i] = 2 * (n_rule * len(strong) / total) / (n_rule + len(strong))
        strong = strong[np.linspace(0, len(strong) - 1, min(len(strong), MAX_POSITIVES)).astype(int)]
        silent = rows.copy()
        silent[at] = False
        hard = _near_misses(windows, codes.ids, strong, np.flatnonzero(silent), v)
        said = int(holds[strong].sum()), int(holds[hard].sum())
        counts["n_hard"][i] = len(hard)
        out["hard_recall"][i] = said[0] / len(strong)
        out["hard_precision"][i] = said[0] / sum(said) if sum(said) else np.nan
        if len(hard):
            out["hard_accuracy"][i] = (said[0] / len(strong) + 1 - said[1] / len(hard)) / 2
    return LabelScores(**out, **counts)


def _windows(codes: Codes) -> np.ndarray:
    """[N, WINDOW] tokens ahead of each row, nearest first, -1 where there is none."""
    out = np.full((codes.n_tokens, WINDOW), -1, np.int64)
    for back in range(1, WINDOW + 1):
        same = (codes.seq[back:] == codes.seq[:-back]) & (codes.pos[back:] == codes.pos[:-back] + back)
        out[back:, back - 1] = np.where(same, codes.ids[:-back], -1)
    return out


def _near_misses(windows: np.ndarray, ids: np.ndarray, strong: np.ndarray, silent: np.ndarray, v: int) -> np.ndarray:
    """As many silent rows as strong ones: those that share most tokens with them."""
    bag, peaks = np.zeros(v + 1, bool), np.zeros(v + 1, bool)
    bag[windows[strong].ravel()] = True
    bag[-1] = False  # stands for "no token"
    peaks[ids[strong]] = True
    overlap = bag[windows[silent]].sum(1) + WINDOW * peaks[ids[silent]]
    best = np.argsort(-overlap, kind="stable")[: len(strong)]
    return silent[best]
