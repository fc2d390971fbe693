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
from sae.worlds.benchmark import Budget, row
from sae.worlds.peers import KINDS, RATES
from sae.worlds.scoring import Score


def peer_rows(
    environment: Path, budget: Budget, kinds: tuple[str, ...], *, quick: bool, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row per library and kind, at the rate of highest explained variance of three (``quick``: of the middle one).

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
    out = []
    for library, theirs in KINDS.items():
        for kind in (k for k in theirs if k in kinds):
            best: dict[str, Any] | None = None
            for lr in RATES[1:2] if quick else RATES:
                found = [_job(python, library, kind, lr, seed, budget, say) for seed in range(budget.seeds)]
                runs = [f for f in found if f is not None]
                if len(runs) < budget.seeds:
                    continue
                scores = [Score(**r["score"]) for r in runs]
                made = row(library, kind, budget, scores, [r["cpu_s"] for r in runs], setting=f"lr {lr:g}")
                if best is None or made["ev"] > best["ev"]:
                    best = made
            if best is not None:
                out.append(best)
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
