"""This machine as numbers: the operations of a training step, real steps, a forward pass, the disk, and what a process
holds.

Measured in a few seconds, at the shapes of the recipe that is planned; nothing is fitted to a recipe's own running
time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import UsageError
from sae.strict import nearest, parse_config, read_toml
from workbench.planning.machine import Machine, machines
from workbench.run import long_step

if TYPE_CHECKING:
    from workbench.activations.format.spec import StoreSpec

SMALL = (
    (32, 256, 4, 64),
    (128, 2048, 16, 512),
)  # d_in, d_sae, k, rows: one that is mostly fixed time, one that is mostly arithmetic
_TRAIN = """
import tempfile, torch
import workbench.dictionaries.train
from sae import TopKConfig, train
with tempfile.TemporaryDirectory() as folder:
    rows = (torch.randn(16, 8) for _ in range(2))
    train(TopKConfig(d_in=8, d_sae=64, k=2), rows, total_steps=2, out=folder, progress=False)
"""
_MODEL = """
import numpy, torch
import workbench.activations.harvesting.run
from workbench import load_model
from workbench.activations.harvesting.forward import ModelProducer
from workbench.activations.format.spec import Source, StoreSpec, Stream
from workbench.corpus import CorpusConfig, plan_tokens
from workbench.models import load_tokenizer
plan_tokens(CorpusConfig(), load_tokenizer("mini-pythia"), n_seq=64, ctx=128)
names, at = ["h000", "h001", "h002"], "blocks.1.hook_resid_post"
spec = StoreSpec(
    id="s", plan={}, n_seq=256, ctx=128, batch_size=32, seqs_per_shard=256,
    sources=tuple(Source(name=n, model="m") for n in names),
    streams=tuple(Stream(key=n, source=n, hook=at, at=at, width=128) for n in names),
)
run = ModelProducer(spec, numpy.ones((256, 128), numpy.int32), {n: load_model("mini-pythia") for n in names})
torch.set_num_threads(1)
next(run(0, 1))
"""
_HERE = """
import pathlib, psutil
def memory():
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peak = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return max([psutil.Process().memory_info().rss, *peak])
before = psutil.Process().memory_info().rss
"""
_AT_WORK = (  # several models in turn, several times: the first passes do not show all that the allocator will keep
    "for _ in run(0, 256): pass"
)
BEGIN = {"train": _TRAIN + _HERE, "model": _MODEL + _HERE + _AT_WORK, "both": _TRAIN + _MODEL + _HERE + _AT_WORK}
HELD_BY = 32 * 128 * 128 * 4  # bytes of one number per token and unit of width in that batch


def this_machine(
    d_in: int = 256,
    d_sae: int = 4096,
    k: int = 32,
    rows: int = 1024,
    *,
    models: Sequence[RunModel] = (),
    store: StoreSpec | None = None,
    disk: Path | None = None,
    kind: str = "train",
) -> Machine:
    """Rates of this machine, measured now in a few seconds, at the shapes that will be used where they are given.

    ``models`` are loaded and run as a harvest does it; ``store``: what a shard to be written looks like. ``kind`` of
    work (``train``, ``model`` or ``both``): what its process keeps in memory is measured in one of its own.
    """
    import psutil
    import torch

    threads = torch.get_num_threads()
    with long_step("measuring this machine", 6, "part") as shown:
        shown.part("copies")
        stream = _stream()
        shown.part("training steps")
        step, stretch = inside_a_step(stream)
        shown.part("memory")
        held = memory(kind)
        shown.part("operations")
        rates = {name: rate / stretch for name, rate in operations(d_in, d_sae, k, rows).items()}
        shown.part("disk")
        rates |= _disk_rates(disk, store or _a_store())
        shown.part("models")
        rates |= _model_rates(models)
    return Machine(
        name="this machine",
        about=(
            f"measured, {threads} thread{'s' * (threads > 1)}; a step's parts take {stretch:.2f} times as long in it as"
            " alone"
        ),
        memory=float(psutil.virtual_memory().total),
        stream=stream,
        step=step,
        **held,
        measured=True,
        unified=True,
        **rates,
    )


@dataclass(frozen=True)
class RunModel:
    """A language model that a recipe runs, as it runs it."""

    name: str
    revision: str | None
    hooks: tuple[str, ...]  # this model's own names
    n_seq: int  # sequences of a batch
    ctx: int
    threads: int


def _a_store() -> StoreSpec:
    """The document of a store of one stream of 256 numbers."""
    from workbench.activations.format.spec import Source, StoreSpec, Stream

    stream = Stream(key="h000", source="m", hook="h", at="h", width=256)
    return StoreSpec(
        id="s",
        sources=(Source(name="m", model="m"),),
        streams=(stream,),
        plan={},
        n_seq=1,
        ctx=128,
        batch_size=8,
        seqs_per_shard=1,
    )


def _stream() -> float:
    """Bytes per second that a copy reads and writes."""
    import torch

    source = torch.zeros(2**23)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / average(lambda: target.copy_(source))


def inside_a_step(stream: float) -> tuple[float, float]:
    """(seconds of a training step that no amount accounts for, how much longer its parts take in it than alone and over
    and over).

    Real steps of two small dictionaries against the sum of their parts: two equations. Inside a step nothing finds its
    numbers where the same operation left them a moment ago, results are new memory, and copies, norms and counts stand
    between the parts.
    """
    rounds = [[_small_steps(shape, stream) for shape in SMALL] for _ in range(3)]
    typical = [[statistics.median(one[i][j] for one in rounds) for i in range(len(SMALL))] for j in range(2)]
    return solved(*typical)


def solved(alone: Sequence[float], real: Sequence[float]) -> tuple[float, float]:
    """``real = step + stretch * alone`` for two shapes; a stretch below one or a step below zero is the noise of the
    clock.
    """
    stretch = max(1.0, (real[1] - real[0]) / (alone[1] - alone[0])) if alone[1] > alone[0] else 1.0
    return max(0.0, real[0] - stretch * alone[0]), stretch


def _small_steps(shape: tuple[int, int, int, int], stream: float) -> tuple[float, float]:
    """(seconds of the parts of a training step, each alone; seconds of a real one) at one shape (d_in,
    d_sae, k, rows).
    """
    import torch

    from sae import TopKConfig
    from sae.trainer import Trainer
    from workbench.planning.counts import Dictionary, Reading, plan_training

    d, f, k, rows = shape
    rates = Machine(name="parts", memory=1, stream=stream, disk_write=1, disk_read=1, **operations(*shape))
    plan = plan_training([Dictionary(d, f, k)], steps=1, batch_size=rows, reading=Reading(), checkpoints=0)
    trainer = Trainer(TopKConfig(d_in=d, d_sae=f, k=k))
    x = torch.randn(rows, d, generator=torch.Generator().manual_seed(0))
    return sum(part.seconds(rates)[0] for part in plan.parts), average(lambda: trainer.step(x), 0.15)


def memory(kind: str) -> dict[str, float]:
    """Bytes a fresh process holds after the least of a kind of work (libraries, tiny models, the default text), and
    what forward passes of batches add, as numbers per token and unit of width."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN[kind] + "\nprint(before, memory())"], stdout=subprocess.PIPE, check=True, text=True
    )
    before, after = (float(n) for n in done.stdout.split()[-2:])
    return {"resident": before} | ({} if kind == "train" else {"held": max(1.0, (after - before) / HELD_BY)})


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
        backend.top_k(backend.linear(x, weight, bias), k)[1]
        if rows * f <= 2**26
        else torch.randint(f, (rows, k), generator=generator)
    )
    values = torch.rand(rows, k, generator=generator)
    flat, slopes, source = indices.flatten(), values.flatten(), torch.arange(rows).repeat_interleave(k)
    order = backend.transpose(flat, f)
    parameter = torch.nn.Parameter(torch.zeros(f, d))
    parameter.grad = torch.ones(f, d)
    optimizer = torch.optim.Adam([parameter], fused=True)
    moved = 4.0 * rows * k * d
    product = 2.0 * len(tile) * d * f / average(lambda: backend.linear(tile, weight, bias))
    return {
        "float32": product,
        "bfloat16": product,
        "gather": moved / average(lambda: backend.decode(values, indices, weight)),
        "select": len(tile) * f / average(lambda: backend.top_k(pre, k)),
        "decode": moved / average(lambda: backend.decode(values, indices, weight)),
        "dots": moved / average(lambda: backend.dots(x, weight, indices)),
        "scatter": (moved + 4.0 * f * d) / average(lambda: backend.scatter(order, slopes, source, x)),
        "sort": rows * k / average(lambda: backend.transpose(flat, f)),
        "adam": 7 * 4.0 * f * d / average(optimizer.step),
    }


def _disk_rates(folder: Path | None, store: StoreSpec) -> dict[str, float]:
    """Writing shards as a harvest does, reading with digests as training does, and checkpoints."""
    import xxhash

    data = os.urandom(2**24)
    with tempfile.NamedTemporaryFile(dir=folder) as f:
        f.write(data)
        f.flush()

        def read() -> None:
            f.seek(0)
            xxhash.xxh3_64_digest(f.read())

        return {"disk_read": len(data) / average(read, least=3), **_writing(folder, store), **_saving(folder)}


def _writing(folder: Path | None, store: StoreSpec) -> dict[str, float]:
    """Bytes per second that a shard of a store takes, digests and statistics included, and its seconds however small it
    is.
    """
    import numpy as np

    from workbench.activations.format.shard import SHARDS
    from workbench.activations.write.writer import write_shard

    def write(folder: Path, spec: StoreSpec, tokens: np.ndarray, batches: list[dict[str, np.ndarray]]) -> None:
        write_shard(folder, spec, 0, tokens, lambda lo, hi: iter(batches))
        (folder / SHARDS / spec.shard_name(0)).unlink()

    store = _tried(store)
    row = sum(s.width for s in store.streams) * store.itemsize
    kind = np.uint16 if store.dtype == "bfloat16" else np.float32
    seconds, sizes = [], []
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for part in (SHARDS, "tmp"):
            Path(place, part).mkdir()
        for n_batches, batch in (
            (1, 1),
            (max(2, 2**24 // (row * store.rows_per_seq * store.batch_size)), store.batch_size),
        ):
            n = n_batches * batch
            spec = store.model_copy(update={"n_seq": n, "seqs_per_shard": n, "heldout_seqs": 0})
            rows = {s.key: np.ones((batch * store.rows_per_seq, s.width), kind) for s in store.streams}
            tokens = np.zeros((n, store.ctx), np.int32)

            seconds.append(average(partial(write, Path(place), spec, tokens, [rows] * n_batches), least=3))
            sizes.append(n * store.rows_per_seq * row)
    return {"shard": seconds[0], "disk_write": (sizes[1] - sizes[0]) / max(seconds[1] - seconds[0], 1e-4)}


def _tried(store: StoreSpec) -> StoreSpec:
    """A store like a recipe's, but of short sequences, small batches, and as few streams as make a batch of eight
    megabytes at most.
    """
    short = store.model_copy(update={"ctx": min(store.ctx, 128), "exclude": (0,)})
    each = short.rows_per_seq * short.itemsize
    kept = [store.streams[0]]
    for s in store.streams[1:]:
        if (sum(k.width for k in kept) + s.width) * each > 2**23:
            break
        kept.append(s)
    batch = max(1, min(store.batch_size, 2**23 // (sum(k.width for k in kept) * each)))
    return short.model_copy(update={"streams": tuple(kept), "batch_size": batch})


def _saving(folder: Path | None) -> dict[str, float]:
    """What a checkpoint costs however small, and per byte."""
    import torch

    from sae import checkpoint

    with tempfile.TemporaryDirectory(dir=folder) as place:
        each = [
            average(partial(checkpoint.write, Path(place), 1, {"w": torch.zeros(n // 4)}, {}), least=3)
            for n in (4, 2**24)
        ]
    return {"commit": each[0], "disk_save": 2**24 / max(each[1] - each[0], 1e-3)}


def _model_rates(models: Sequence[RunModel]) -> dict[str, float]:
    """Seconds that loading a model takes, and FLOP/s of a batch of a harvest, over models together; nothing where none
    is given.
    """
    import torch

    from workbench.activations.harvesting.forward import capture
    from workbench.models import load_model
    from workbench.models.facts import deepest_layer, model_facts
    from workbench.models.weights import weights_of_files

    flops = seconds = loading = 0.0
    usual = torch.get_num_threads()
    if models:
        load_model("mini-pythia")  # the libraries
    for m in models:
        began = time.perf_counter()
        bridge = load_model(m.name, m.revision)
        weights_of_files(m.name, m.revision)
        loading += time.perf_counter() - began
        tokens = torch.ones(m.n_seq, m.ctx, dtype=torch.int64)
        torch.set_num_threads(m.threads)
        try:
            seconds += average(partial(capture, bridge, tokens, list(m.hooks)), 0.3, 3)
        finally:
            torch.set_num_threads(usual)
        flops += tokens.numel() * model_facts(m.name, m.revision).forward_flops(m.ctx, deepest_layer(m.hooks))
    return {"forward": flops / seconds, "load": loading / len(models)} if models else {}


def average(action: Callable[[], Any], seconds: float = 0.06, least: int = 5) -> float:
    """Seconds of an action, on average over at least so much time and so many times, after one that is not counted.

    Not the shortest: on a machine that others use too, a run will be disturbed as this was.
    """
    action()
    begin, n = time.perf_counter(), 0
    while n < least or time.perf_counter() - begin < seconds:
        action()
        n += 1
    return (time.perf_counter() - begin) / n


def machine_named(name: str) -> Machine:
    """A described machine (its name, or a TOML file of one's own), or ``here`` for this one, measured.

    Raises:
        UsageError: no such machine. ConfigError: a bad file.
    """
    if name == "here":
        return this_machine()
    known = machines()
    path = Path(name) if name.endswith(".toml") and Path(name).is_file() else known.get(name)
    if path is None:
        raise UsageError(f"machine {name!r} is not described ({nearest(name, ['here', *known])}), and is no TOML file.")
    return parse_config(Machine, {"name": path.stem, **read_toml(path)}, where=str(path))
