"""Every activation on worlds with known features, at one L0: ours, and other libraries where they are installed.

All see the same rows in the same order and are scored on the same fresh ones. Kinds whose sparsity is paid for get the
weight of their penalty searched until their L0 is the wanted one; what was reached stands in the row.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.config import SAEConfig
from sae.errors import ConfigError
from sae.model import SAE
from sae.presets import preset
from sae.trainer import Trainer
from sae.worlds.config import WORLDS, WorldConfig
from sae.worlds.scoring import Score, score
from sae.worlds.world import World

KINDS = ("topk", "norm-topk", "batchtopk", "matryoshka", "l1", "jumprelu")
HELD_OUT = 100  # worlds of the table have seeds from here on; settings are chosen on worlds before
POOL = 2**19  # rows drawn of a world at most; longer runs see them again in another order
NEAR = 0.05  # of the wanted L0: near enough to compare


@dataclass(frozen=True)
class Budget:
    """What every library gets: ``steps`` of ``batch`` rows, ``latents`` F, ``k`` on per row, ``tries`` of a penalty's
    weight, ``seeds`` worlds. ``scored``: fresh rows.
    """

    world: str = "small"
    latents: int = 512
    k: int = 9
    steps: int = 2000
    batch: int = 1024
    seeds: int = 3
    tries: int = 5
    scored: int = 20_000

    def about(self, what: dict[str, Any]) -> list[Any]:
        """All that decides a run, for :class:`Kept`: it says the same however many worlds are asked for, and nothing to
        another version of PyTorch.
        """
        return [what, {k: v for k, v in asdict(self).items() if k != "seeds"}, torch.__version__]

    def of(self, seed: int) -> WorldConfig:
        """The ``seed``-th world held out."""
        return WorldConfig(**{**WORLDS[self.world], "seed": HELD_OUT + seed})


class Kept:
    """Finished runs in a file of JSON lines, one each, so that a benchmark that was interrupted goes on where it
    stopped; without a file nothing is kept.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self.done: dict[str, dict[str, Any]] = {
            json.dumps(of, sort_keys=True): found for of, found in map(json.loads, lines)
        }

    def once(self, of: Any, make: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        """What ``make`` gives for ``of`` (plain values: all that decides the run), from the file if it is there. None,
        a run that failed, is not kept.
        """
        key = json.dumps(of, sort_keys=True)
        if key not in self.done:
            found = make()
            if found is None:
                return None
            self.done[key] = found
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as f:
                    f.write(json.dumps([of, found], sort_keys=True) + "\n")
        return self.done[key]


QUICK = Budget(steps=300, seeds=1, tries=3, scored=8000)


@dataclass
class Pool:
    """Rows [N, D] of a world, the same for all that train on it; ``seed`` of their order."""

    rows: Tensor
    budget: Budget
    seed: int

    @classmethod
    def drawn(cls, world: World, budget: Budget, seed: int) -> Pool:
        """As many fresh rows as the budget asks for, at most :data:`POOL`."""
        n, batches = min(POOL, budget.steps * budget.batch), world.batches(budget.batch, seed=seed)
        return cls(torch.cat([next(batches) for _ in range(max(1, n // budget.batch))]), budget, seed)

    def batches(self) -> Iterator[Tensor]:
        """``steps`` batches: every row once, then once more in another order, and so on."""
        b, generator, left = self.budget.batch, torch.Generator().manual_seed(self.seed), self.budget.steps
        while left:
            order = torch.randperm(len(self.rows), generator=generator)
            for part in order.split(b)[: min(left, len(self.rows) // b)]:
                yield self.rows[part]
                left -= 1


@torch.no_grad()
def equal_l0(sae: SAE, rows: Tensor, k: int) -> SAE:
    """The same dictionary, its thresholds multiplied by the factor at which ``k`` latents a row are on over ``rows``
    [N, D], in place.

    Raises:
        ConfigError: it has no thresholds above zero, or fewer than ``k`` latents a row can be on.
    """
    threshold = getattr(sae, "threshold_F", None)
    if threshold is None or not bool((threshold > 0).all()):
        raise ConfigError("this dictionary has no thresholds above zero to multiply. Use a threshold activation.")
    ratio = (sae.pre_activations(rows) / threshold).clamp_min(0).flatten()
    factor = ratio.topk(k * len(rows)).values[-1]
    if not factor > 0:
        raise ConfigError(f"fewer than k = {k} latents a row have a positive pre-activation. Use a smaller k.")
    threshold.mul_(factor)
    return sae


def config_of(kind: str, setting: str, d_in: int, budget: Budget, seed: int, weight: float | None = None) -> SAEConfig:
    """The dictionary of one row: ``setting`` is "defaults" or the name of a preset."""
    own: dict[str, Any] = {}
    if setting != "defaults":
        own = preset(setting, d_in=d_in, d_sae=budget.latents, k=budget.k, kind=kind)
    activation = own.get("activation", {}) | {"kind": kind} | ({} if weight is None else {"coefficient": weight})
    sizes = {"d_in": d_in, "d_sae": budget.latents, "k": budget.k, "seed": seed}
    return SAEConfig(**{**own, **sizes, "activation": activation})


def trained(config: SAEConfig, pool: Pool) -> tuple[SAE, float]:
    """(dictionary, CPU seconds of this thread it took)."""
    begin = time.thread_time()
    trainer = Trainer(config, total_steps=pool.budget.steps)
    for x in pool.batches():
        trainer.step(x)
    return trainer.dictionary(), time.thread_time() - begin


def at_l0(make: Callable[[float], Any], l0_of: Callable[[Any], float], wanted: float, first: float, tries: int) -> Any:
    """What ``make(weight)`` gives at the weight whose L0 comes nearest the wanted one.

    Secants in log L0 over log weight, from ``first`` on.
    """
    points: list[tuple[float, float, Any]] = []
    weight = first
    for _ in range(tries):
        made = make(weight)
        l0 = max(l0_of(made), 1e-3)
        points.append((math.log(weight), math.log(l0 / wanted), made))
        if abs(l0 / wanted - 1) <= NEAR:
            break
        points.sort(key=lambda p: abs(p[1]))
        slope = -1.0
        if len(points) > 1 and points[0][0] != points[1][0]:
            slope = min(-0.2, (points[0][1] - points[1][1]) / (points[0][0] - points[1][0]))
        weight = math.exp(points[0][0] - max(-1.5, min(1.5, points[0][1] / slope)))
    return min(points, key=lambda p: abs(p[1]))[2]


def ours(kind: str, setting: str, world: World, pool: Pool, seed: int) -> tuple[Score, float]:
    """(score, CPU seconds of the run that counts) of one kind of ours on one world."""
    budget = pool.budget

    def make(weight: float | None) -> tuple[Score, float]:
        config = config_of(kind, setting, world.config.width, budget, seed, weight)
        made, seconds = trained(config, pool)
        return score(made, world, rows=budget.scored), seconds

    if kind != "l1":
        return make(None)
    found: tuple[Score, float] = at_l0(make, lambda r: r[0].l0, budget.k, 2.0, budget.tries)
    return found


def row(who: str, kind: str, budget: Budget, scores: list[Score], seconds: list[float], **more: Any) -> dict[str, Any]:
    """One row of the table: means over worlds, and every world's F1 and MCC."""
    n = len(scores)
    means = {key: _told(sum(s.row()[key] for s in scores) / n) for key in scores[0].row() if key != "n"}
    return (
        {
            "who": who,
            "kind": kind,
            "world": budget.world,
            "latents": budget.latents,
            "rows": budget.steps * budget.batch,
        }
        | means
        | {"worlds": n, "all_f1": [s.f1 for s in scores], "all_mcc": [s.mcc for s in scores]}
        | {"cpu_s": sum(seconds) / n}
        | more
    )


def _told(x: float) -> float | None:
    return None if math.isnan(x) else x


def run(
    budget: Budget,
    settings: tuple[str, ...] = ("defaults", "few-steps", "faithful"),
    kinds: tuple[str, ...] = KINDS,
    done: Callable[[str], None] = lambda name: None,
    kept: Kept | None = None,
) -> list[dict[str, Any]]:
    """Our rows: every kind at every setting, on every world of the budget. ``done`` hears of each; ``kept`` has runs of
    an earlier call.
    """
    kept = kept or Kept()
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in range(budget.seeds):
        drawn = functools.cache(functools.partial(_drawn, budget, seed))  # when something trains on it
        for kind in kinds:
            for setting in settings:
                config = config_of(kind, setting, budget.of(seed).width, budget, seed).model_dump(mode="json")
                of = budget.about({"who": "ours", "setting": setting, "seed": seed, "config": config})
                one = kept.once(of, functools.partial(_measured, kind, setting, drawn, seed))
                assert one is not None  # ours do not fail without an error
                found.setdefault((kind, setting), []).append(one)
                done(f"{kind}, {setting}")
    return [
        row("ours", kind, budget, [Score(**r["score"]) for r in runs], [r["cpu_s"] for r in runs], setting=setting)
        for (kind, setting), runs in found.items()
    ]


def _drawn(budget: Budget, seed: int) -> tuple[World, Pool]:
    world = World(budget.of(seed))
    return world, Pool.drawn(world, budget, seed)


def _measured(kind: str, setting: str, drawn: Callable[[], tuple[World, Pool]], seed: int) -> dict[str, Any]:
    scored, seconds = ours(kind, setting, *drawn(), seed)
    return {"score": scored.row(), "cpu_s": seconds}
