"""Side by side with SAELens, sparsify and dictionary_learning: cost of a training step, and error on the same
activations.

    python benchmarks/race.py --peers-python /path/to/venv/bin/python

The peers are no dependency of this project: ``benchmarks/peers.sh`` makes an environment of their own. Name its
interpreter; everything, ours included, then runs in one process there.
Each library takes its own whole step, optimiser and bookkeeping included, on one thread. For quality all see the same
cached activations of the bundled models (``--store``: those of a demo store that is there already), each row once, in
the same order, scaled alike, with the same k, warm-up and decay. Every rate of one grid is run in every library, and
two are told of each: that of the lowest error, and that of the lowest error with at most 5 % dead latents. Ours runs
without a choice of rate too: at its defaults, and with the preset ``few-steps``. A latent is dead that
fires on none of the training rows. ``--real``: on a real language model's activations, see ``_race_real.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _race_real as race_real
from _race_libraries import LIBRARIES, SETTINGS

REPOSITORY = Path(__file__).resolve().parents[1]
SITES = (("mini-pythia", 1), ("mini-mamba", 2))  # bundled models, layers
ROWS, STEPS, QUICK_STEPS = 512, 300, 60  # rows of a batch, batches
HELD_OUT_TOO = 5  # sequences of 127 rows harvested for each batch, a tenth of them held out
RATES = (3e-3, 1e-2, 3e-2)
DEAD = 0.05  # share of dead latents a dictionary may have


def cost(shape: tuple[int, int, int, int], repeats: int, libraries: list[str]) -> Iterator[dict[str, Any]]:
    """CPU time of a step of each library, all taking turns with the product that is the unit."""
    import torch

    b, d, f, k = shape
    x = torch.randn(b, d, generator=torch.Generator().manual_seed(0))
    w = torch.randn(f, d, generator=torch.Generator().manual_seed(1))
    for name in libraries:
        step, _, _ = LIBRARIES[name](d, f, k, 1e-3, 10_000, 0, x)
        unit, spent = [], []
        for i in range(repeats + 2):
            begin = time.thread_time()
            x @ w.t()
            middle = time.thread_time()
            step(x)
            end = time.thread_time()
            if i >= 2:
                unit.append(middle - begin)
                spent.append(end - middle)
        u, s = statistics.median(unit), statistics.median(spent)
        yield {"library": name, "step_ms": s * 1e3, "unit_ms": u * 1e3, "units": s / u}


def activations(store: Path | None, steps: int, out: Path) -> None:
    """Write the rows that all libraries see, of both sites: ``steps`` batches of training rows, each row once, and
    held-out rows.
    """
    import torch
    from safetensors.torch import save_file

    from workbench.activations import ActivationStore, HarvestRecipe, harvest
    from workbench.config import read_recipe
    from workbench.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        if store is None:
            recipe = read_recipe(HarvestRecipe, "demo-harvest").model_copy(
                update={"n_seq": HELD_OUT_TOO * steps, "threads": 1}
            )
            store = harvest(recipe, Workspace(folder))
        rows: dict[str, torch.Tensor] = {}
        opened = ActivationStore.open(store)
        for source, site in SITES:
            hook = f"blocks.{site}.hook_resid_post"
            train = list(itertools.islice(opened.batches(hook, ROWS, seed=0, source=source, epochs=1), steps))
            if len(train) < steps:
                raise SystemExit(f"{store} has {len(train)} batches of {ROWS} training rows, the race needs {steps}.")
            held_out = list(opened.batches(hook, ROWS, seed=0, source=source, split="heldout", epochs=1))
            rows |= {f"{source}.L{site}R.train": torch.cat(train), f"{source}.L{site}R.heldout": torch.cat(held_out)}
    save_file(rows, out)


def quality(rows_file: Path, seeds: int, k: int, expansion: int, libraries: list[str]) -> Iterator[dict[str, Any]]:
    """Centred FVU on held-out rows and share of dead latents, of each library at each learning rate."""
    import torch

    from sae.folder import read_tensors
    from sae.metrics import fvu

    tensors = read_tensors(rows_file)
    for site in sorted({name.rpartition(".")[0] for name in tensors}):
        train, held_out = tensors[f"{site}.train"].float(), tensors[f"{site}.heldout"].float()
        d, steps = train.shape[1], len(train) // ROWS
        scale = d**0.5 / train.norm(dim=1).mean()
        train, held_out = train * scale, held_out * scale
        for name in libraries:
            for lr in (*RATES, *SETTINGS) if name == "workbench" else RATES:
                fvus, dead = [], []
                for seed in range(seeds):
                    order = torch.randperm(steps, generator=torch.Generator().manual_seed(100 + seed))
                    batches = [train[i * ROWS : (i + 1) * ROWS] for i in order.tolist()]
                    step, reconstruct, latents = LIBRARIES[name](d, expansion * d, k, lr, steps, seed, batches[0])
                    for x in batches:
                        step(x)
                    with torch.no_grad():
                        fvus.append(float(fvu(held_out, torch.cat([reconstruct(x) for x in held_out.split(4096)]))))
                        fired = torch.stack([(latents(x) > 0).any(0) for x in train.split(4096)]).any(0)
                        dead.append(1 - float(fired.float().mean()))
                yield {
                    "site": site,
                    "library": name,
                    "lr": lr,
                    "fvu": statistics.mean(fvus),
                    "half_interval": race_real.half_interval(fvus) or float("nan"),
                    "dead": statistics.mean(dead),
                    "seeds": seeds,
                    "all": fvus,
                }


def chosen(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of the table: for each site and library the rate of least error, that with few dead latents, and our
    defaults.
    """
    for site, library in dict.fromkeys((r["site"], r["library"]) for r in rows):
        of = [r for r in rows if (r["site"], r["library"]) == (site, library)]
        tuned = [r for r in of if not isinstance(r["lr"], str)]
        few = [r for r in tuned if r["dead"] <= DEAD]
        yield f"best rate   {told(min(tuned, key=lambda r: r['fvu']))}"
        yield f"dead <= {DEAD:.0%}  {told(min(few, key=lambda r: r['fvu'])) if few else f'{site} {library} at no rate'}"
        yield from (f"no choice   {told(r)}" for r in of if isinstance(r["lr"], str))


def told(row: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"{row['site']} {row['library']:20} lr {row['lr']:<9} FVU {row['fvu']:.4f} ± {row['half_interval']:.4f}  dead"
        f" {row['dead']:6.1%}"
    )


def here(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    shape = (1024, 256, 4096, 32)
    results: dict[str, Any] = {"torch": torch.__version__, "shape": shape, "cost": [], "quality": []}
    print(
        f"full training step at (B, D, F, k) = {shape}, one thread, torch {torch.__version__}, no dead latents",
        file=sys.stderr,
    )
    libraries = args.only or list(LIBRARIES)
    for row in cost(shape, 5 if args.quick else 15, libraries):
        results["cost"].append(row)
        print(
            f"{row['library']:22} {row['step_ms']:8.1f} ms = {row['units']:5.2f} encoder products",
            file=sys.stderr,
            flush=True,
        )
    seeds = 1 if args.quick else 3
    print(f"held-out FVU, k = 16, 8x, {seeds} seeds (t interval), every library at lr {RATES}", file=sys.stderr)
    for row in quality(args.rows, seeds, 16, 8, libraries):
        results["quality"].append(row)
        print(f"  {told(row)}", file=sys.stderr, flush=True)
    for line in chosen(results["quality"]):
        print(line, file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps(results, indent=2))


def here_real(args: argparse.Namespace) -> None:
    rows = []
    runs = race_real.Runs(args.rows, args.threads, args.log)
    for row in race_real.race(runs, args.only or list(LIBRARIES), args.seeds):
        rows.append(row)
        print(race_real.told(row), file=sys.stderr, flush=True)
    if args.write:
        args.write.write_text(race_real.markdown(rows, runs, args.threads, os.getloadavg()[0]), encoding="utf-8")
    if args.json:
        print(json.dumps({"steps": runs.steps, "threads": args.threads, "rows": rows}, indent=2))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peers-python",
        default=os.environ.get("PEERS_PYTHON"),
        help="interpreter with the three libraries (or PEERS_PYTHON)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats, one seed (with --real: 40 steps)")
    parser.add_argument("--only", nargs="+", choices=list(LIBRARIES), help="these libraries only")
    parser.add_argument(
        "--store", type=Path, help="a store of the demo's hooks; without it one is harvested for the race"
    )
    parser.add_argument("--real", action="store_true", help="on activations of smollm2-135m instead")
    parser.add_argument("--hook", default=race_real.HOOK, help="with --real: the residual stream")
    parser.add_argument("--steps", type=int, default=400, help="with --real: batches of 1,024 rows")
    parser.add_argument("--seeds", type=int, default=3, help="with --real")
    parser.add_argument("--threads", type=int, default=1, help="with --real")
    parser.add_argument("--write", type=Path, help="with --real: write the table into this Markdown file")
    parser.add_argument(
        "--rows", type=Path, help="with --real: keep the rows here; a file that is there is used as it is"
    )
    parser.add_argument("--log", type=Path, help="with --real: keep finished runs here, and go on from them")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        (here_real if args.real else here)(args)
        return 0
    if not args.peers_python:
        print(
            "no peers to race against: install sae-lens, eai-sparsify and dictionary-learning in an environment of"
            " their own and pass --peers-python"
        )
        return 0
    env = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": str(args.threads),
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
    }
    if args.real and args.quick:
        args.steps, args.seeds = 40, 1
    flags = [f"--{name}" for name in ("quick", "json", "real") if getattr(args, name)] + (
        ["--only", *args.only] if args.only else []
    )
    for name in ("hook", "steps", "seeds", "threads") if args.real else ():
        flags += [f"--{name}", str(getattr(args, name))]
    for name in ("write", "log"):
        if getattr(args, name):
            flags += [f"--{name}", str(getattr(args, name).resolve())]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.safetensors"
        if args.real:
            rows = args.rows.resolve() if args.rows else rows
            if rows.exists():
                print(f"{rows}: these rows, whatever --hook, --steps and --store say", file=sys.stderr)
            else:
                race_real.activations(args.store, args.hook, args.steps, rows)
        else:
            activations(args.store, QUICK_STEPS if args.quick else STEPS, rows)
        return subprocess.call([args.peers_python, __file__, "--here", "--rows", str(rows), *flags], env=env)


if __name__ == "__main__":
    sys.exit(main())
