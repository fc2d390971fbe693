"""The race on a real language model's activations: ``python benchmarks/race.py --real --peers-python VENV/bin/python``.

Every library trains a Top-K dictionary on the same rows of one residual stream, each row once and in the same order, at
each of three rates. Its best rate (least held-out error) is then run for as many seconds as ours needs for all rows.
Told of each: rows per second, error at equal rows, error at equal seconds, share of latents that fire on no held-out
row. Seconds are of CPU time on one thread, of wall time on several.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _race_libraries import LIBRARIES, SETTINGS

MODEL, HOOK = "smollm2-135m", "blocks.10.hook_resid_post"
ROWS, K, EXPANSION = 1024, 32, 8
RATES = (1e-3, 3e-3, 1e-2)
HELD_OUT = 8192  # rows at most
LEAST = 10  # steps of a run at equal seconds


def activations(store: Path | None, hook: str, steps: int, out: Path) -> None:
    """Write ``steps`` batches of training rows and held-out rows of one hook.

    Without a store, one is harvested of the documentation on this machine.
    """
    import tempfile

    import torch
    from safetensors.torch import save_file

    from workbench.activations import ActivationStore, HarvestRecipe, harvest
    from workbench.config import read_recipe
    from workbench.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        if store is None:
            sequences = steps * ROWS * 10 // (9 * 127) + 64  # a tenth of them is held out
            recipe = read_recipe(HarvestRecipe, "real-harvest").model_copy(
                update={"n_seq": sequences, "hooks": (hook,), "threads": 1}
            )
            store = harvest(recipe, Workspace(folder))
        opened = ActivationStore.open(store)
        train = list(itertools.islice(opened.batches(hook, ROWS, seed=0, source=MODEL, epochs=1), steps))
        if len(train) < steps:
            raise SystemExit(f"{store} has {len(train)} batches of {ROWS} training rows. Use --steps {len(train)}.")
        held_out = torch.cat(list(opened.batches(hook, ROWS, seed=0, source=MODEL, split="heldout", epochs=1)))
        save_file({"train": torch.cat(train).bfloat16(), "heldout": held_out[:HELD_OUT].bfloat16()}, out)


def race(rows_file: Path, libraries: list[str], seeds: int, threads: int) -> Iterator[dict[str, Any]]:
    """One row per library and rate at equal rows, then one per library at equal seconds."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    tensors = load_file(rows_file)
    train, held_out = tensors["train"].float(), tensors["heldout"].float()
    scale = train.shape[1] ** 0.5 / float(train.norm(dim=1).mean())
    train, held_out = train * scale, held_out * scale
    best: dict[str, dict[str, Any]] = {}
    for name in libraries:
        for lr in (*SETTINGS, *RATES) if name == "workbench" else RATES:
            found = run(name, lr, train, held_out, len(train) // ROWS, seeds, clock)
            yield found | {"at": "equal rows"}
            if name not in best or found["fvu"] < best[name]["fvu"]:
                best[name] = found
    if "workbench" not in best:
        return
    seconds = best["workbench"]["seconds"]
    for name, found in best.items():
        steps = min(len(train) // ROWS, max(LEAST, round(seconds * found["rows_per_second"] / ROWS)))
        equal = found if name == "workbench" else run(name, found["lr"], train, held_out, steps, seeds, clock)
        yield equal | {"at": "equal seconds"}


def run(
    name: str, lr: float | str, train: Any, held_out: Any, steps: int, seeds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Means over seeds of one library at one rate."""
    import torch

    from sae.metrics import fvu

    fvus, dead, spent = [], [], []
    for seed in range(seeds):
        order = torch.randperm(len(train) // ROWS, generator=torch.Generator().manual_seed(100 + seed))[:steps]
        batches = [train[i * ROWS : (i + 1) * ROWS] for i in order.tolist()]
        d = train.shape[1]
        step, reconstruct, latents = LIBRARIES[name](d, EXPANSION * d, K, lr, steps, seed, batches[0])
        begin = clock()
        for x in batches:
            step(x)
        spent.append(clock() - begin)
        with torch.no_grad():
            fvus.append(float(fvu(held_out, torch.cat([reconstruct(x) for x in held_out.split(2048)]))))
            fired = torch.stack([(latents(x) > 0).any(0) for x in held_out.split(2048)]).any(0)
        dead.append(1 - float(fired.float().mean()))
    seconds = statistics.mean(spent)
    return {
        "library": name,
        "lr": lr,
        "steps": steps,
        "fvu": statistics.mean(fvus),
        "all_fvu": fvus,
        "dead": statistics.mean(dead),
        "seconds": seconds,
        "rows_per_second": steps * ROWS / seconds,
    }


def told(row: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"{row['at']:13} {row['library']:20} lr {row['lr']:<9} {row['steps']:4} steps  FVU {row['fvu']:.4f}  silent"
        f" {row['dead']:6.1%}  {row['rows_per_second']:8,.0f} rows/s"
    )


def markdown(rows: list[dict[str, Any]], steps: int, threads: int, load: float) -> str:
    """The table as a page of the documentation."""
    import platform
    from datetime import date

    import torch

    seeds = len(rows[0]["all_fvu"])
    head = (
        "# The race on a real language model's activations\n\n"
        f"Written by `python benchmarks/race.py --real --write` on {date.today().isoformat()}: {platform.machine()},"
        f" torch {torch.__version__}, {threads} thread{'s' if threads > 1 else ''}, load of the machine {load:.1f} at"
        f" the end. {MODEL}, `{HOOK}`; {EXPANSION} times its width in latents, k = {K}; {steps} steps of {ROWS} rows,"
        f" {seeds} seed{'s' if seeds > 1 else ''}. `equal seconds`: as many steps as fit into the time that ours needs"
        " for all rows. FVU: centred, held-out. Silent: latents that fire on no held-out row.\n\n"
    )
    lines = ["| at | library | rate | steps | FVU | silent | rows/s |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r['at']} | {r['library']} | {r['lr']} | {r['steps']} | {r['fvu']:.4f} | {r['dead']:.1%} |"
        f" {r['rows_per_second']:,.0f} |"
        for r in rows
    ]
    return head + "\n".join(lines) + "\n"
