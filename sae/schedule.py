"""Learning rate and K as functions of the step: warm-up, stable, decay; annealed K."""

from __future__ import annotations

import math

from sae.config import TrainingConfig


def warm_up(config: TrainingConfig, total_steps: int | None) -> int:
    """Steps in which the learning rate grows: at most a tenth of ``total_steps``, or 100 where their number is open."""
    return min(config.warmup_steps, 100 if total_steps is None else total_steps // 10)


def learning_rate(config: TrainingConfig, step: int, total_steps: int | None) -> float:
    """Learning rate of step ``step`` (from 0): linear warm-up, constant, linear decay over the last ``decay_share`` of
    the steps to ``details.end_factor``.

    Without ``total_steps`` there is no decay.
    """
    rate = config.rate(total_steps) * min(1.0, (step + 1) / (warm_up(config, total_steps) + 1))
    if total_steps is not None and config.decay_share > 0:
        decay = max(1, round(config.decay_share * total_steps))
        left, end = min(1.0, max(0.0, (total_steps - step) / (decay + 1))), config.details.end_factor
        rate *= end + (1 - end) * left
    return rate


def kept(config: TrainingConfig, step: int, total_steps: int | None) -> int:
    """K of step ``step``: falls linearly from ``k_start`` to ``k`` over the first ``k_anneal_share`` of the steps.

    Llama Scope (arXiv 2410.20526) §3.2. Without ``total_steps``, or with ``k_start = 0``, it is ``k`` throughout.
    """
    if not config.k_start or total_steps is None:
        return config.k
    length = max(1.0, config.k_anneal_share * total_steps)
    return math.ceil(config.k + (config.k_start - config.k) * max(0.0, 1 - step / length))
