"""The plan against the clock: three small recipes planned and run, interleaved, medians of three. `python
benchmarks/plan.py`

A harvest, a Top-K dictionary and a crosscoder over snapshots, each run in a fresh process whose peak memory is what the
system says it was. Right after every run the machine is measured again, in the same process, so the plan and the run
see the same neighbours; the plan knows nothing of the run. Exit code 1 where a median misses its limit: 25 % for time,
10 % for memory and disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LIMITS = {"seconds": 0.25, "memory": 0.10, "disk": 0.10}
RECIPES = {
    "harvest": (
        """
id = "bench"
hooks = ["L1R"]
n_seq = 1536
ctx = 128
dtype = "bfloat16"
seqs_per_shard = 256
[[sources]]
model = "mini-pythia"
revision = "step256"
[[sources]]
model = "mini-pythia"
revision = "step1664"
[[sources]]
model = "mini-pythia"
"""
    ),
    "train": (
        """
store = "bench"
sources = ["mini-pythia"]
sites = ["L1R"]
expansions = [32]
ks = [16]
batch_size = 1024
tokens = 400_000
"""
    ),
    "evolve": (
        """
id = "bench-cc"
model = "mini-pythia"
revisions = ["step256", "step1664", "step9000"]
site = "L1R"
store = "bench"
expansion = 16
k = 16
tokens = 300_000
batch_size = 1024
"""
    ),
}


def child(name: str, folder: Path) -> None:
    """Run one recipe, then measure this machine at its shapes and plan it; print both."""
    import resource
    import shutil
    import time

    from workbench.planning import Layout, measured_here, planned_recipe
    from workbench.workspace import Workspace

    ws = Workspace(folder / "ws")
    path = str(folder / f"{name}.toml")
    run, made = prepared(name, path, ws)
    shutil.rmtree(made, ignore_errors=True)
    begin = time.perf_counter()
    run()
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    disk = sum(p.stat().st_size for p in made.rglob("*") if p.is_file())
    planned = planned_recipe(path, ws)
    said = planned.plan(Layout()).on(measured_here(planned, ws))
    print(
        json.dumps(
            {
                "plan": {"seconds": said["seconds"], "memory": said["memory_bytes"], "disk": said["disk_bytes"]},
                "run": {"seconds": seconds, "memory": peak, "disk": disk},
                "parts": {k: v["seconds"] for k, v in said["parts"].items()},
                "items": said["memory"],
            }
        )
    )


def judged(found: dict[str, list[dict]]) -> list[dict]:
    """For every recipe and quantity the medians of its runs: planned, measured, their relative difference, and whether
    it keeps the limit.
    """
    rows = []
    for name, runs in found.items():
        for quantity, limit in LIMITS.items():
            off = statistics.median(r["plan"][quantity] / r["run"][quantity] - 1 for r in runs)
            plan, run = (statistics.median(r[which][quantity] for r in runs) for which in ("plan", "run"))
            rows.append(
                {
                    "recipe": name,
                    "quantity": quantity,
                    "plan": plan,
                    "run": run,
                    "off": off,
                    "limit": limit,
                    "met": abs(off) <= limit,
                }
            )
    return rows


def prepared(name: str, path: str, ws):  # type: ignore[no-untyped-def]
    """(what to time, the folder it makes), with everything loaded that a plan does not speak of (text, tokenizer, the
    trainer's libraries).
    """
    import torch

    from sae import TopKConfig, Trainer
    from workbench.config import read_recipe

    if name != "harvest":
        Trainer(TopKConfig(d_in=8, d_sae=64, k=2)).step(torch.randn(16, 8))
    if name == "harvest":
        from workbench.activations import HarvestRecipe, harvest
        from workbench.activations.harvesting.run import prepare
        from workbench.corpus import plan_tokens
        from workbench.models import load_tokenizer

        recipe = read_recipe(HarvestRecipe, path)
        tokens = plan_tokens(recipe.corpus, load_tokenizer(recipe.sources[0].model), n_seq=recipe.n_seq, ctx=recipe.ctx)
        prepare(recipe, tokens)
        return lambda: harvest(recipe, ws, plan=tokens), ws.path("stores", recipe.id)
    if name == "train":
        from workbench.activations import ActivationStore
        from workbench.dictionaries.recipe import TrainRecipe, jobs_of
        from workbench.dictionaries.train import train_recipe

        training = read_recipe(TrainRecipe, path)
        id = jobs_of(training, ActivationStore.open(ws.path("stores", training.store)))[0].id
        return lambda: train_recipe(training, ws), ws.path("dictionaries", id)
    from workbench.analysis.evolution.plan import make_plan
    from workbench.analysis.evolution.recipe import EvolveRecipe
    from workbench.analysis.evolution.train import train_plans

    plan = make_plan(read_recipe(EvolveRecipe, path))
    return lambda: train_plans([plan], ws), ws.path("dictionaries", plan.id)


def main() -> int:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one run of each recipe instead of three")
    parser.add_argument("--child", nargs=2, metavar=("RECIPE", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--parts", action="store_true", help="also print the plan's parts and memory items")
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]))
        return 0
    repeats = 1 if options.quick else options.repeats
    found: dict[str, list[dict]] = {name: [] for name in RECIPES}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in RECIPES.items():
            Path(folder, f"{name}.toml").write_text(text)
        for _ in range(repeats):
            for name in RECIPES:
                command = [sys.executable, __file__, "--child", name, folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
    print("| recipe | quantity | planned | measured | difference | limit |\n|---|---|---:|---:|---:|---:|")
    rows = judged(found)
    for r in rows:
        shown = (lambda v: f"{v:.1f} s") if r["quantity"] == "seconds" else (lambda v: f"{v / 1e6:.1f} MB")
        mark = "" if r["met"] else " **missed**"
        print(
            f"| {r['recipe']} | {r['quantity']} | {shown(r['plan'])} | {shown(r['run'])} | {r['off']:+.0%}{mark} |"
            f" {r['limit']:.0%} |"
        )
    if options.parts:
        print(json.dumps({n: {k: r[-1][k] for k in ("parts", "items")} for n, r in found.items()}, indent=1))
    missed = sum(not r["met"] for r in rows)
    print(f"median of {repeats} runs; {missed} of {len(rows)} outside their limit")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
