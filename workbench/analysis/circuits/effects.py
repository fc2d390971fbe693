"""What an intervention changed: metrics of the answer, and tidy tables of their means with bootstrap intervals.

Metrics, all at the answer position: `logit_diff` = logit(answer) - logit(wrong), `logit` of the answer, `prob` of the
answer, `kl` = KL(clean ‖ intervened) in nats. An *effect* is the metric after an intervention minus the metric before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sae.errors import UsageError
from sae.strict import nearest
from workbench.stats import Estimate, interval95, resample_weights

METRICS = ("logit_diff", "logit", "prob", "kl")
RESAMPLES = 500
NUMBERS = 1 << 23  # logits that are held at a time: their softmax reads them again, which is fast while they are near


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics, or a UsageError that names the nearest valid one."""
    for metric in metrics:
        if metric not in METRICS:
            raise UsageError(f"metric {metric!r} is unknown ({nearest(metric, list(METRICS))}).")
    return tuple(metrics)


class Answers:
    """The answers of P prompts, against which variants of them are measured.

    Args:
        answer, wrong: [P]. clean: logits [P,V], the reference of `kl`.
    """

    def __init__(self, answer: Tensor, wrong: Tensor, clean: Tensor, metrics: Sequence[str] = METRICS):
        self.answer, self.wrong, self.metrics = answer, wrong, check_metrics(metrics)
        self._clean = clean.log_softmax(-1) if "kl" in metrics else None
        self._weight = None if self._clean is None else self._clean.exp()
        self._at_once = max(1, NUMBERS // clean.shape[-1])
        self._logits = clean

    @cached_property
    def before(self) -> dict[str, np.ndarray]:
        """Metrics [P] of the clean prompts."""
        return self.of(self._logits, torch.arange(len(self._logits)))

    def of(self, logits: Tensor, prompts: Tensor) -> dict[str, np.ndarray]:
        """Metrics [R] of logits [R,V], row r being a variant of prompt prompts[r]."""
        return self._sliced(lambda rows: logits[rows], prompts)

    def changes(self, logits: Callable[[slice], Tensor], prompts: Tensor) -> dict[str, np.ndarray]:
        """Effects [R]: metrics less those of the clean prompts, of logits that are made, and let go, slice by slice."""
        after = self._sliced(logits, prompts)
        return {m: values - self.before[m][prompts.numpy()] for m, values in after.items()}

    def _sliced(self, logits: Callable[[slice], Tensor], prompts: Tensor) -> dict[str, np.ndarray]:
        parts = []
        for start in range(0, max(len(prompts), 1), self._at_once):
            rows = slice(start, start + self._at_once)
            parts.append(self._of(logits(rows), prompts[rows]))
        return {m: np.concatenate([p[m] for p in parts]) for m in self.metrics}

    def _of(self, logits: Tensor, prompts: Tensor) -> dict[str, np.ndarray]:
        rows, out = torch.arange(len(logits)), {}
        answer, wrong = self.answer[prompts], self.wrong[prompts]
        logprobs = logits.log_softmax(-1) if {"prob", "kl"} & set(self.metrics) else logits
        for metric in self.metrics:
            if metric == "logit_diff":
                value = logits[rows, answer] - logits[rows, wrong]
            elif metric == "logit":
                value = logits[rows, answer]
            elif metric == "prob":
                value = logprobs[rows, answer].exp()
            else:
                assert self._clean is not None
                assert self._weight is not None
                value = self._clean[prompts].sub_(logprobs).mul_(self._weight[prompts]).sum(-1).clamp_min(0)
            out[metric] = value.double().numpy()
        return out


def answer_metrics(
    logits: Tensor, answer: Tensor, wrong: Tensor, clean_logits: Tensor, metrics: Sequence[str] = METRICS
) -> dict[str, np.ndarray]:
    """Metrics of logits [R,V] at the answer position; answer, wrong [R]; clean_logits [R,V] is the
    reference of `kl`.
    """
    return Answers(answer, wrong, clean_logits, metrics).of(logits, torch.arange(len(logits)))


def interval(values: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Central 95 % of the bootstrap of the mean over axis 0 (prompts) of [P, ...]; NaN prompts are left out."""
    flat = values.reshape(len(values), -1)
    present = np.isfinite(flat)
    weights = resample_weights(len(flat), resamples=RESAMPLES, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weights @ np.where(present, flat, 0.0)) / (weights @ present)
    low, high = np.full((2, flat.shape[1]), np.nan)
    some = present.any(0)
    if some.any():
        low[some], high[some] = interval95(means[:, some], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def tidy(values: np.ndarray, axes: Mapping[str, Sequence[Any]], **constants: Any) -> pd.DataFrame:
    """One row per cell of the axes: `effect` (mean over prompts), `low`, `high`, `n` (prompts), the axes' labels and
    constants.

    values [P, *axes]; NaN means that the prompt has no such cell (a position outside it, say). Cells without any prompt
    are absent.
    """
    shape = tuple(len(labels) for labels in axes.values())
    if values.shape[1:] != shape:
        raise ValueError(f"values {values.shape} do not have the axes {dict(zip(axes, shape, strict=True))}")
    n = np.isfinite(values).sum(0).reshape(-1)
    low, high = (bound.reshape(-1) for bound in interval(values))
    grid = pd.MultiIndex.from_product(list(axes.values()), names=list(axes)).to_frame(index=False)
    mean = np.where(np.isfinite(values), values, 0).sum(0).reshape(-1) / np.maximum(n, 1)
    table = grid.assign(effect=mean, low=low, high=high, n=n)
    for name, value in constants.items():
        table[name] = value
    return table[table.n > 0].reset_index(drop=True)


@dataclass(frozen=True)
class Peak:
    """The cell of a profile with the largest mean effect, by size.

    `share` of the summed absolute mean effects of all cells (see :func:`share_of`); `same` is the share of bootstrap
    resamples that peak at this cell.
    """

    index: tuple[int, ...]
    effect: Estimate
    share: Estimate
    same: float


def share_of(values: np.ndarray, cells: Sequence[int], *, seed: int = 0, beyond: float = 0.0) -> Estimate:
    """Share of the summed absolute mean effects that some cells of a profile [P, ...] hold, with its interval over
    prompts.

    A percentile bootstrap of this share lies too low, and may lie below the share itself: resampling adds noise, and
    noise makes the absolute mean of an empty cell larger, never smaller. So the resamples keep every cell's sign, which
    leaves the share a smooth ratio; and because the share suffers from the same noise, its upper end is also that of
    the reflected percentile interval (Davison & Hinkley 1997, 5.2.1), where that is higher. The BCa interval does not
    help: where nearly all resamples lie below the share, its correction leaves only their extreme tail.

    Args:
        cells: flat indices into the profile. NaN prompts of a cell count as none.
        beyond: the summed absolute effects of cells that were not measured, as far as they are known.
    """
    mean, drawn = _means(values, seed)
    size, total = np.abs(mean), np.abs(mean).sum() + beyond
    if not total:
        return Estimate(float("nan"), None, None, len(values), "prompts", "none")
    cells, share = list(cells), float(size[list(cells)].sum() / total)
    signed = drawn * np.sign(mean)
    with np.errstate(invalid="ignore", divide="ignore"):
        smooth = signed[:, cells].sum(1) / (signed.sum(1) + beyond)
        plain = np.abs(drawn[:, cells]).sum(1) / (np.abs(drawn).sum(1) + beyond)
    low, high = interval95(smooth)
    reflected = 2 * share - np.nanquantile(plain, 0.025)
    low, high = np.clip([min(low, share), max(high, reflected, share)], 0, 1)
    return Estimate(
        share, float(low), float(high), len(values), "prompts", "bootstrap over prompts with signs kept, 95 %"
    )


def _means(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over prompts of every cell [C], and of every resample [RESAMPLES, C]; NaN prompts count as none."""
    flat = values.reshape(len(values), -1)
    present = np.isfinite(flat)
    filled = np.where(present, flat, 0.0)
    weights = resample_weights(len(flat), resamples=RESAMPLES, seed=seed)
    return filled.sum(0) / np.maximum(present.sum(0), 1), (weights @ filled) / np.maximum(weights @ present, 1)


def locate_peak(values: np.ndarray, *, seed: int = 0, beyond: float = 0.0) -> Peak:
    """The peak of a profile [P, ...] over prompts; intervals are bootstraps over prompts of the located cell.

    NaN prompts count as none. beyond: see :func:`share_of`.
    """
    mean, drawn = _means(values, seed)
    top = int(np.abs(mean).argmax())
    low, high = interval95(drawn[:, top])
    return Peak(
        index=tuple(int(i) for i in np.unravel_index(top, values.shape[1:])),
        effect=Estimate(float(mean[top]), low, high, len(values), "prompts", "bootstrap over prompts, 95 %"),
        share=share_of(values, [top], seed=seed, beyond=beyond),
        same=float((np.abs(drawn).argmax(1) == top).mean()),
    )
