"""Why latents die in a short run on many features: BatchTopK of ``few-steps`` on the world ``synth-16k`` (16,384
features in 768 dimensions, 4,096 latents, k = 25), one thing changed at a time.

Printed of each: F1, MCC, explained variance and dead share on 20,000 fresh rows, and how many latents counted as dead
every hundred steps of the training. The world is made first (minutes).

    python benchmarks/dead.py --write docs/benchmarks-dead.md
    python benchmarks/dead.py --quick                     # a small world, few steps: shows that it runs
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from sae.config import SAEConfig
from sae.trainer import Trainer
from sae.worlds.benchmark import QUICK, Budget, Pool, config_of
from sae.worlds.scoring import score
from sae.worlds.world import World

CHANGES: dict[str, dict[str, Any]] = {
    "few-steps": {},
    "AuxK of 400": {"k_aux": 400},
    "dead after 5,000 rows, AuxK of 400": {"dead_after": 5000, "k_aux": 400},
    "dead after 5,000 rows": {"dead_after": 5000},
}


def measure(name: str, world: World, pool: Pool) -> dict[str, Any]:
    """The numbers of one run."""
    own = config_of("batchtopk", "few-steps", world.config.width, pool.budget, 0)
    config = SAEConfig.model_validate(own.model_dump(exclude_unset=True) | CHANGES[name])
    trainer, dead = Trainer(config, total_steps=pool.budget.steps), []
    for i, x in enumerate(pool.batches()):
        report = trainer.step(x)
        if i % max(1, pool.budget.steps // 10) == 0:
            dead.append(report.dead)
    found = score(trainer.dictionary(), world, rows=pool.budget.scored)
    return {"what": name, "dead_after": config.dead_after, "k_aux": config.k_aux, "while": dead} | found.row()


def line(found: dict[str, Any]) -> str:
    """One row of the table."""
    numbers = " | ".join(f"{found[key]:.3f}" for key in ("f1", "mcc", "ev"))
    counted = ", ".join(f"{n:,}" for n in found["while"])
    return f"| {found['what']} | {numbers} | {found['l0']:.1f} | {found['dead']:.1%} | {counted} |"


def page(lines: list[str], budget: Budget) -> str:
    """The table as Markdown."""
    head = [
        "# Why latents die in a short run on many features",
        "",
        f"Written by `python benchmarks/dead.py --write` on {date.today().isoformat()}: BatchTopK of `few-steps`, world"
        f" `{budget.world}`, {budget.latents:,} latents, k = {budget.k}, {budget.steps:,} steps of"
        f" {budget.batch:,} rows, one seed. Dead: fires on none of {budget.scored:,} fresh rows; the last column:"
        " latents that counted as dead at every tenth of the training.",
        "",
        "| what | F1 | MCC | EV | L0 | dead | while training |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines]) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    budget = replace(QUICK, world="synth-16k", latents=4096, k=25, steps=args.steps, scored=20_000)
    if args.quick:
        budget = replace(QUICK, steps=20)
    world = World(budget.of(0))
    pool, lines = Pool.drawn(world, budget, 0), []
    for name in CHANGES:
        lines.append(line(measure(name, world, pool)))
        print(lines[-1], flush=True)
        if args.write:
            args.write.write_text(page(lines, budget), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
