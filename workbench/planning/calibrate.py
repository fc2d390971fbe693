"""This machine as numbers: the operations of a training step, real steps, a forward pass, the disk, and what a process holds.

Measured in a few seconds, at the shapes of the recipe that is planned; nothing is fitted to a recipe's own running time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from workbench.planning.machine import Machine

SMALL = ((32, 256, 4, 64), (128, 2048, 16, 512))  # d_in, d_sae, k, rows: one that is mostly fixed time, one that is mostly arithmetic
PEAK = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
_STEP = """
import torch
from sae import TopKConfig, Trainer
Trainer(TopKConfig(d_in=8, d_sae=64, k=2), total_steps=10).step(torch.randn(16, 8))
import workbench.activations.reader, workbench.training, workbench.provenance
"""
_MODEL = """
import torch
from workbench import load_model
from workbench.activations.forward import capture
capture(load_model("mini-pythia"), torch.ones(1, 4, dtype=torch.int64), ["blocks.0.hook_resid_post"])
import workbench.activations.harvesting, workbench.corpus
"""
BEGIN = {"train": _STEP, "harvest": _MODEL, "evolve": _STEP + _MODEL, "pretrain": _MODEL}


def this_machine(
    d_in: int = 256, d_sae: int = 4096, k: int = 32, rows: int = 1024, *, models: Any = (), disk: Path | None = None, kind: str = "train"
) -> Machine:
    """Rates of this machine, measured now in a few seconds, at the shapes that will be used where they are given.

    ``models``: (bridge, hooks, tokens) per model whose forward pass is to be timed. ``kind``: of recipe; what it keeps in memory before
    it begins is measured in a process of its own. The machine may be shared: the best of several.
    """
    import psutil
    import torch

    threads, stream = torch.get_num_threads(), _stream()
    step, stretch = inside_a_step(stream)
    return Machine(
        name="this machine",
        about=f"measured, {threads} thread{'s' * (threads > 1)}; a step's parts take {stretch:.2f} times as long in it as alone",
        memory=float(psutil.virtual_memory().total),
        stream=stream,
        step=step,
        resident=resident(kind),
        measured=True,
        unified=True,
        **{name: rate / stretch for name, rate in operations(d_in, d_sae, k, rows).items()},
        **_disk_rates(disk),
        forward=_forward_rate(models),
    )


def _stream() -> float:
    """Bytes per second that a copy reads and writes."""
    import torch

    source = torch.zeros(2**23)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / best(lambda: target.copy_(source))


def inside_a_step(stream: float) -> tuple[float, float]:
    """(seconds of a training step that no amount accounts for, how much longer its parts take in it than alone and over and over).

    Real steps of two small dictionaries against the sum of their parts: two equations. Inside a step nothing finds its numbers where
    the same operation left them a moment ago, results are new memory, and copies, norms and counts stand between the parts.
    """
    rounds = [[_small_steps(shape, stream) for shape in SMALL] for _ in range(3)]
    least = [[min(one[i][j] for one in rounds) for i in range(len(SMALL))] for j in range(2)]
    return solved(*least)


def solved(alone: Sequence[float], real: Sequence[float]) -> tuple[float, float]:
    """``real = step + stretch * alone`` for two shapes; a stretch below one or a step below zero is the noise of the clock."""
    stretch = max(1.0, (real[1] - real[0]) / (alone[1] - alone[0])) if alone[1] > alone[0] else 1.0
    return max(0.0, real[0] - stretch * alone[0]), stretch


def _small_steps(shape: tuple[int, int, int, int], stream: float) -> tuple[float, float]:
    """(seconds of the parts of a training step, each alone; seconds of a real one) at one shape (d_in, d_sae, k, rows)."""
    import torch

    from sae import TopKConfig
    from sae.trainer import Trainer
    from workbench.planning.counts import Dictionary, Reading, plan_training

    d, f, k, rows = shape
    rates = Machine(name="parts", memory=1, stream=stream, disk_write=1, disk_read=1, **operations(*shape))
    plan = plan_training([Dictionary(d, f, k)], steps=1, batch_size=rows, reading=Reading(), checkpoints=0)
    trainer = Trainer(TopKConfig(d_in=d, d_sae=f, k=k))
    x = torch.randn(rows, d, generator=torch.Generator().manual_seed(0))
    return sum(part.seconds(rates)[0] for part in plan.parts), best(lambda: trainer.step(x), 9)


def resident(kind: str) -> float:
    """Bytes a fresh process holds at its peak after doing the least of a kind of recipe's work: libraries, not what they work on."""
    code = BEGIN.get(kind, BEGIN["train"])
    done = subprocess.run([sys.executable, "-c", code + PEAK], stdout=subprocess.PIPE, check=True, text=True)
    return float(done.stdout.split()[-1])


def operations(d: int, f: int, k: int, rows: int) -> dict[str, float]:
    """Rates of the operations of a training step, each alone, on the backend that training uses."""
    import torch

    from sae.backends import pick
    from sae.encode import tile_size

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, d, generator=generator)
    weight, bias = torch.randn(f, d, generator=generator), torch.zeros(f)
    backend = pick("auto", weight)
    tile = x[: min(rows, tile_size(f))]
    pre = backend.linear(tile, weight, bias)
    indices = (
        backend.top_k(backend.linear(x, weight, bias), k)[1] if rows * f <= 2**26 else torch.randint(f, (rows, k), generator=generator)
    )
    values = torch.rand(rows, k, generator=generator)
    flat, slopes, source = indices.flatten(), values.flatten(), torch.arange(rows).repeat_interleave(k)
    order = backend.transpose(flat, f)
    parameter = torch.nn.Parameter(torch.zeros(f, d))
    parameter.grad = torch.ones(f, d)
    optimizer = torch.optim.Adam([parameter], fused=True)
    moved = 4.0 * rows * k * d
    product = 2.0 * len(tile) * d * f / best(lambda: backend.linear(tile, weight, bias))
    return {
        "float32": product,
        "bfloat16": product,
        "gather": moved / best(lambda: backend.decode(values, indices, weight)),
        "select": len(tile) * f / best(lambda: backend.top_k(pre, k)),
        "decode": moved / best(lambda: backend.decode(values, indices, weight)),
        "dots": moved / best(lambda: backend.dots(x, weight, indices)),
        "scatter": (moved + 4.0 * f * d) / best(lambda: backend.scatter(order, slopes, source, x)),
        "sort": rows * k / best(lambda: backend.transpose(flat, f)),
        "adam": 7 * 4.0 * f * d / best(optimizer.step),
    }


def _disk_rates(folder: Path | None) -> dict[str, float]:
    """Writing with digests to the disk and reading with digests, as the store does."""
    import blake3
    import xxhash

    data = os.urandom(2**24)
    with tempfile.NamedTemporaryFile(dir=folder) as f:

        def write() -> None:
            blake3.blake3(data).digest()
            f.seek(0)
            f.write(data)
            f.flush()
            os.fsync(f.fileno())

        def read() -> None:
            f.seek(0)
            xxhash.xxh3_64_digest(f.read())

        return {"disk_write": len(data) / best(write, 3), "disk_read": len(data) / best(read, 3)}


def _forward_rate(models: Any) -> float:
    """FLOP/s of harvesting one batch with every model; 0 where none is given."""
    from workbench.activations.forward import capture
    from workbench.models.facts import deepest_layer, model_facts

    flops = seconds = 0.0
    for name, revision, bridge, hooks, tokens in models:
        facts = model_facts(name, revision)
        flops += tokens.numel() * facts.forward_flops(tokens.shape[1], deepest_layer(hooks))
        seconds += best(partial(capture, bridge, tokens, hooks), 3)
    return flops / seconds if seconds else 0.0


def best(action: Callable[[], Any], repeats: int = 5) -> float:
    """Shortest of a few timings, after one that is not counted."""
    action()
    shortest = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        shortest = min(shortest, time.perf_counter() - begin)
    return shortest
