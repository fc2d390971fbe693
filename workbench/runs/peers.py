"""Other libraries in a benchmark: each job in a process of the environment that has them, ours on its path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sae
from sae.errors import MissingError
from sae.worlds.benchmark import Budget, Kept, row
from sae.worlds.peers import KINDS, RATES
from sae.worlds.scoring import Score


def peer_rows(
    environment: Path,
    budget: Budget,
    kinds: tuple[str, ...],
    *,
    quick: bool,
    say: Callable[[str], None],
    kept: Kept | None = None,
) -> list[dict[str, Any]]:
    """One row per library and kind, at the rate of highest explained variance of three on the first world (``quick``:
    at the middle one). ``kept`` has the runs of an earlier call.

    A library that fails says why and has no row.

    Raises:
        MissingError: no such environment.
    """
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        raise MissingError(
            f"{environment} is no environment: it has no {python.relative_to(environment)}. `benchmarks/peers.sh"
            f" {environment}` makes one."
        )
    kept = kept or Kept()
    out = []

    def run(library: str, kind: str, lr: float, seed: int) -> dict[str, Any] | None:
        what = {"who": library, "kind": kind, "lr": lr, "seed": seed}
        return kept.once(budget.about(what), lambda: _job(python, library, kind, lr, seed, budget, say))

    for library, theirs in KINDS.items():
        for kind in (k for k in theirs if k in kinds):
            tried = {lr: run(library, kind, lr, 0) for lr in (RATES[1:2] if quick else RATES)}
            ev = {lr: found["score"]["ev"] for lr, found in tried.items() if found is not None}
            if not ev:
                continue
            best = max(ev, key=lambda lr: ev[lr])
            found = [run(library, kind, best, seed) for seed in range(budget.seeds)]
            runs = [f for f in found if f is not None]
            if len(runs) == budget.seeds:
                scores = [Score(**r["score"]) for r in runs]
                out.append(row(library, kind, budget, scores, [r["cpu_s"] for r in runs], setting=f"lr {best:g}"))
    return out


def _job(
    python: Path, library: str, kind: str, lr: float, seed: int, budget: Budget, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """What one run printed; None where it failed, which is said."""
    job = {"library": library, "kind": kind, "lr": lr, "seed": seed, "budget": asdict(budget)}
    env = os.environ | {
        "PYTHONPATH": str(Path(sae.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [str(python), "-m", "sae.worlds.peers", json.dumps(job)], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        say(f"{library} {kind} at {lr:g}: failed ({reason[:200]})")
        return None
    say(f"{library} {kind} at {lr:g}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
