"""The race on a real language model's activations: ``python benchmarks/race.py --real --peers-python VENV/bin/python``.

Every library trains a Top-K dictionary on the same rows of one residual stream, each row once and in the same order,
at each of three rates with one seed. Its best rate (least held-out error) runs with all seeds, and then for as many
seconds as ours needs for all rows.
Told of each: rows per second, error at equal rows, error at equal seconds, share of latents that fire on no held-out
row. Seconds are of CPU time on one thread, of wall time on several.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _race_libraries import LIBRARIES, SETTINGS, settings_of

MODEL, HOOK = "smollm2-135m", "blocks.10.hook_resid_post"
ROWS, K, EXPANSION = 1024, 32, 8
RATES = (1e-3, 3e-3, 1e-2)
HELD_OUT = 8192  # rows at most
LEAST = 10  # steps of a run at equal seconds


def activations(store: Path | None, hook: str, steps: int, out: Path) -> None:
    """Write ``steps`` batches of training rows and held-out rows of one hook.

    Without a store, one is harvested of the documentation on this machine. The file says what its rows are.
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
        tensors = {"train": torch.cat(train).bfloat16(), "heldout": held_out[:HELD_OUT].bfloat16()}
        save_file(tensors, out, metadata={"rows": f"{MODEL}, `{hook}`"})


class Runs:
    """Trainings on one set of rows; finished ones are kept in ``log`` (JSON lines), so an interrupted race goes on.

    ``rows``: what the file says of its rows.
    """

    def __init__(self, rows_file: Path, threads: int, log: Path | None):
        import torch
        from safetensors import safe_open

        from sae.worlds.benchmark import Kept

        torch.set_num_threads(threads)
        self.clock = time.thread_time if threads == 1 else time.perf_counter
        with safe_open(rows_file, "pt") as f:
            self.rows = str((f.metadata() or {}).get("rows", "rows of unknown origin"))
            train, held_out = f.get_tensor("train").float(), f.get_tensor("heldout").float()
        scale = train.shape[1] ** 0.5 / float(train.norm(dim=1).mean())
        self.train, self.held_out = train * scale, held_out * scale
        # of other rows, sizes or versions, or on other threads, a finished run says nothing
        size = float(held_out.double().square().sum())
        self.about = [len(train), len(held_out), size, threads, ROWS, K, EXPANSION, torch.__version__]
        self.kept = Kept(log)

    @property
    def steps(self) -> int:
        """Batches of training rows."""
        return len(self.train) // ROWS

    def one(self, name: str, lr: float | str, steps: int, seed: int) -> dict[str, float]:
        """Held-out error, share of silent latents, and seconds of one run."""
        of = [*self.about, name, settings_of(name, lr, self.train.shape[1], EXPANSION, K), steps, seed]
        found = self.kept.once(of, lambda: self._run(name, lr, steps, seed))
        assert found is not None
        return found

    def _run(self, name: str, lr: float | str, steps: int, seed: int) -> dict[str, float]:
        import torch

        from sae.metrics import fvu

        order = torch.randperm(self.steps, generator=torch.Generator().manual_seed(100 + seed))[:steps]
        batches = [self.train[i * ROWS : (i + 1) * ROWS] for i in order.tolist()]
        d = self.train.shape[1]
        step, reconstruct, latents = LIBRARIES[name](d, EXPANSION * d, K, lr, steps, seed, batches[0])
        begin = self.clock()
        for x in batches:
            step(x)
        seconds, parts = self.clock() - begin, self.held_out.split(2048)
        with torch.no_grad():
            error = float(fvu(self.held_out, torch.cat([reconstruct(x) for x in parts])))
            fired = torch.stack([(latents(x) > 0).any(0) for x in parts]).any(0)
        return {"fvu": error, "dead": 1 - float(fired.float().mean()), "seconds": seconds}

    def row(self, name: str, lr: float | str, steps: int, seeds: int) -> dict[str, Any]:
        """Means over seeds of one library at one rate."""
        runs = [self.one(name, lr, steps, seed) for seed in range(seeds)]
        mean = {key: statistics.mean(r[key] for r in runs) for key in runs[0]}
        fvus = [r["fvu"] for r in runs]
        half = half_interval(fvus)
        about = {"library": name, "lr": lr, "steps": steps, "half_interval": half, "all_fvu": fvus}
        return about | mean | {"rows_per_second": steps * ROWS / mean["seconds"]}


def half_interval(values: list[float]) -> float | None:
    """Half of Student's t interval (95 %) of a mean; None of a single value."""
    from workbench.claims.measured import Measured

    m = Measured.of(values)
    return None if m.high is None else m.high - m.value


def race(runs: Runs, libraries: list[str], seeds: int) -> Iterator[dict[str, Any]]:
    """Every rate with the first seed, then with all seeds the best rate of each library and ours without a choice of
    rate; then one row per library at equal seconds.
    """
    steps, best = runs.steps, {}
    for name in libraries:
        tried = {lr: runs.one(name, lr, steps, 0)["fvu"] for lr in RATES}
        rate = min(tried, key=lambda lr: tried[lr])
        for lr in RATES:
            yield runs.row(name, lr, steps, seeds if lr == rate else 1) | {"at": "equal rows"}
        best[name] = runs.row(name, rate, steps, seeds)
        for setting in SETTINGS if name == "workbench" else ():
            found = runs.row(name, setting, steps, seeds)
            yield found | {"at": "equal rows"}
            if found["fvu"] < best[name]["fvu"]:
                best[name] = found
    if "workbench" not in best:
        return
    seconds = best["workbench"]["seconds"]
    for name, found in best.items():
        fit = min(steps, max(LEAST, round(seconds * found["rows_per_second"] / ROWS)))
        equal = found if name == "workbench" else runs.row(name, found["lr"], fit, seeds)
        yield equal | {"at": "equal seconds"}


def interval(row: dict[str, Any]) -> str:
    """Mean error, with a t interval over seeds where there are several."""
    return f"{row['fvu']:.4f}" + (f" ± {row['half_interval']:.4f}" if row["half_interval"] is not None else "")


def told(row: dict[str, Any]) -> str:
    """A row of the table."""
    return (
        f"{row['at']:13} {row['library']:20} lr {row['lr']:<9} {row['steps']:4} steps  FVU {interval(row):15}  silent"
        f" {row['dead']:6.1%}  {row['rows_per_second']:8,.0f} rows/s  n {len(row['all_fvu'])}"
    )


def markdown(rows: list[dict[str, Any]], runs: Runs, threads: int, load: float) -> str:
    """The table as a page of the documentation."""
    import platform
    from datetime import date

    import torch

    head = (
        "# The race on a real language model's activations\n\n"
        f"Written by `python benchmarks/race.py --real --write` on {date.today().isoformat()}: {platform.machine()},"
        f" torch {torch.__version__}, {threads} thread{'s' if threads > 1 else ''}, load of the machine {load:.1f} at"
        f" the end. {runs.rows}; {EXPANSION} times its width in latents, k = {K}; {runs.steps} steps of {ROWS} rows,"
        " each row once. Rates were compared with one seed. `equal seconds`: as many steps as fit into the time that"
        " ours needs for all rows, at each library's best rate. FVU: centred, held-out, ± a t interval of 95 %."
        " Silent: latents that fire on no held-out row.\n\n"
    )
    lines = ["| at | library | rate | seeds | steps | FVU | silent | rows/s |", "|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r['at']} | {r['library']} | {r['lr']} | {len(r['all_fvu'])} | {r['steps']} | {interval(r)} |"
        f" {r['dead']:.1%} | {r['rows_per_second']:,.0f} |"
        for r in rows
    ]
    return head + "\n".join(lines) + "\n"
