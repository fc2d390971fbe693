"""What a benchmark would cost: a few steps of every kind are timed, nothing is trained.

The world of the timing is the asked one without the steps that drive its directions apart, which are timed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from sae.trainer import Trainer
from sae.worlds.benchmark import POOL, Budget, config_of
from sae.worlds.world import World, overlap_gradient

WARM, TIMED = 2, 3  # steps


def plan(
    budget: Budget, settings: tuple[str, ...], kinds: tuple[str, ...], done: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """One row per kind and setting: CPU seconds of a step, and hours of all its runs on one thread. ``done`` is called
    after each.

    Worlds and their rows, which all kinds share, have a row of their own.
    """
    world = World(budget.of(0).model_copy(update={"orthogonal_steps": 0}))
    c, begin = budget.of(0), time.thread_time()
    overlap_gradient(world.features_GD)
    making = (time.thread_time() - begin) * c.orthogonal_steps
    rows, begin = world.batches(budget.batch, seed=0), time.thread_time()
    batches = [next(rows) for _ in range(WARM)]
    drawing = (time.thread_time() - begin) / WARM / budget.batch * min(POOL, budget.steps * budget.batch)
    scoring = (time.thread_time() - begin) / WARM / budget.batch * budget.scored
    out = [_row("worlds and rows", "", 0.0, (making + drawing) * budget.seeds)]
    for kind in kinds:
        for setting in settings:
            trainer = Trainer(config_of(kind, setting, c.width, budget, 0), total_steps=budget.steps)
            spent = []
            for n in range(WARM + TIMED):
                begin = time.thread_time()
                trainer.step(batches[n % WARM])
                spent.append(time.thread_time() - begin)
            step = sorted(spent[WARM:])[TIMED // 2]
            tries = budget.tries if kind == "l1" else 1  # at most: the search ends where the L0 is near
            out.append(_row(kind, setting, step, (step * budget.steps + scoring) * tries * budget.seeds))
            done()
    return out


def _row(kind: str, setting: str, step: float, seconds: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "setting": setting,
        "step_s": step,
        "hours": seconds / 3600,
        "threads": torch.get_num_threads(),
    }
