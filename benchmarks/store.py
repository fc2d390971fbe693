"""The activation store beside plain files and beside the access patterns of other caches, in one run on one disk.

    python benchmarks/store.py                     # about 9 GiB of scratch files, removed afterwards; a few minutes
    python benchmarks/store.py --quick             # 128 MiB, for `make bench`
    python benchmarks/store.py --write             # also writes the table to docs/benchmarks-store.md

Rows are bfloat16 activations of 2,048 numbers (4 KiB). "Cold" means that the file's pages were flushed and dropped from
this machine's cache. Speeds are the best of the rounds. A shared disk's speed wanders, so a promise is the median over
rounds of the ratio within a round, where the plain file and the store take turns, now one first, now the other; the
lowest and the highest ratio stand beside it. Two more plain readers say what the disk gives at most: one past the
cache, and one that reads the store's own blocks in the order of an epoch and does nothing with them. Peers are run by
their own libraries where the row says so, otherwise their access pattern is imitated.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from workbench.activations import ActivationStore
from workbench.activations.disk import direct_io
from workbench.activations.format.spec import Source, StoreSpec, Stream
from workbench.activations.write.fill import fill

WIDTH, CTX = 2048, 129
ROW = WIDTH * 2
SEQUENTIAL, EPOCH, WARM = (
    "plain sequential read, cold",
    "store: first shuffled epoch, cold",
    "store: shuffled epoch, warm",
)
RUNNING = "store: later shuffled epoch, cold"
PAST_CACHE, PAST_CACHE_SHUFFLED = (
    "plain sequential read past the cache, cold",
    "plain shuffled read past the cache, cold",
)
BATCH = 4096
BUFFERS = 128 << 20


@dataclass
class Table:
    """Measured bytes per second (of every round) and processor seconds per 1e9 bytes (the best), by row name."""

    speeds: dict[str, list[float]] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def measure(self, name: str, work: Callable[[], int], note: str = "") -> None:
        """Time ``work``, which returns the bytes it handled."""
        begin, processor = time.perf_counter(), time.process_time()
        nbytes = work()
        speed = nbytes / (time.perf_counter() - begin)
        cost = (time.process_time() - processor) / (nbytes / 1e9)
        self.cost[name] = min(cost, self.cost.get(name, cost))
        self.speeds.setdefault(name, []).append(speed)
        self.notes[name] = note
        print(f"{name:58} {speed / 1e6:8.0f} MB/s {cost:6.2f} processor s/GB", file=sys.stderr, flush=True)

    def ratios(self, name: str, of: str) -> np.ndarray:
        """Speed of one row over another's, round by round."""
        return np.array([a / b for a, b in zip(self.speeds[name], self.speeds[of], strict=True)])


def drop(*paths: Path) -> None:
    """Flush files and drop their pages from the cache."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def make_spec(n_seq: int) -> StoreSpec:
    """One hook, shards of 64 MiB."""
    return StoreSpec(
        id="bench",
        sources=(Source(name="m", model="m"),),
        streams=(Stream(key="h000", source="m", hook="x", at="x", width=WIDTH),),
        plan={},
        n_seq=n_seq,
        ctx=CTX,
        seqs_per_shard=128,
        batch_size=32,
        dtype="bfloat16",
    )


def rows(n: int) -> np.ndarray:
    """bfloat16 bits of normal numbers, [n, WIDTH]."""
    x = np.random.default_rng(0).normal(size=(n, WIDTH)).astype(np.float32)
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def write_plain(path: Path, block: np.ndarray, total: int) -> int:
    """Write and fsync the same bytes, in the same pieces."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    for at in range(0, total, block.nbytes):
        os.pwrite(fd, memoryview(block).cast("B")[: min(block.nbytes, total - at)], at)
    os.fsync(fd)
    os.close(fd)
    return total


def read_plain(path: Path, buffer: np.ndarray) -> int:
    """Read a file from start to end, 4 MiB at a time."""
    fd, total = os.open(path, os.O_RDONLY), 0
    while n := os.preadv(fd, [memoryview(buffer).cast("B")], total):
        total += n
    os.close(fd)
    return total


def read_bare(shards: list[Path], block: int, threads: int) -> int:
    """Read every whole block of files past the cache and do nothing with it: one thread from start to end, several in
    random order.
    """
    files = [os.open(p, os.O_RDONLY | os.O_DIRECT) for p in shards]
    read_requests = [(fd, at) for fd in files for at in range(0, os.fstat(fd).st_size // block * block, block)]
    if threads > 1:
        read_requests = [read_requests[i] for i in np.random.default_rng(0).permutation(len(read_requests))]

    def read(part: list[tuple[int, int]]) -> int:
        buffer = direct_io.empty((1, max(block, 1 << 21)), "u1")[0]
        return sum(os.preadv(fd, [buffer.data[:block]], at) for fd, at in part)

    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(read, [read_requests[k::threads] for k in range(threads)]))
    for fd in files:
        os.close(fd)
    return total


def in_cache(shards: list[Path]) -> None:
    """Bring files into the cache."""
    buffer = np.empty(4 << 20, np.uint8)
    for path in shards:
        read_plain(path, buffer)


def epoch(batches: Iterator[torch.Tensor], n_rows: int) -> int:
    """One epoch of training batches, all of them read; bytes as stored."""
    return sum(len(next(batches)) for _ in range(n_rows // BATCH)) * ROW


def cold_epochs(store: ActivationStore, seed: int, table: Table) -> None:
    """The first epoch of an iteration, which begins with nothing (fresh buffers, no open file), and the second, as in
    the middle of training.

    The store counts as larger than the memory, so that no epoch is kept in the cache.
    """
    with mock.patch.object(direct_io, "fits", return_value=False):
        batches = iter(store.refresh().batches("x", BATCH, seed=seed, memory_limit=BUFFERS))
        table.measure(
            EPOCH,
            lambda: epoch(batches, len(store)),
            "every block proven by its digest, float32 batches of 4,096 rows, 128 MiB of group buffers",
        )
        table.measure(RUNNING, lambda: epoch(batches, len(store)), "the next epoch of the same iteration")
        batches.close()


def resident() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_of_an_epoch(store: ActivationStore) -> tuple[int, int]:
    """(most resident bytes above the start, bytes of the stated buffers) reading an epoch with 64 MiB of buffers."""
    batches = store.batches("x", BATCH, seed=9, epochs=1, memory_limit=64 << 20)
    before, peak = resident(), 0
    for _ in batches:
        peak = max(peak, resident())
    return peak - before, batches.buffer_bytes


def ours(folder: Path, table: Table, n_seq: int, rounds: int) -> ActivationStore:
    """Write and read the store, taking turns with a plain file of the same bytes."""
    spec = make_spec(n_seq)
    block = rows(32 * (CTX - 1))
    total = spec.n_rows * ROW

    def produce(lo: int, hi: int) -> Iterator[dict[str, np.ndarray]]:
        for i in range(lo, hi, 32):
            yield {"h000": block[: (min(hi, i + 32) - i) * (CTX - 1)]}

    def write_store() -> int:
        shutil.rmtree(folder / "store", ignore_errors=True)
        fill(folder / "store", spec, np.zeros((n_seq, CTX), np.int32), produce)
        return total

    buffer = np.empty(4 << 20, np.uint8)
    writes: list[tuple[str, Callable[[], int], str]] = [
        ("plain write + fsync", lambda: write_plain(folder / "plain", block, total), ""),
        ("store: harvest writer", write_store, "digests, statistics, finite check, one fsync per 64 MiB shard"),
    ]
    for r in range(rounds):
        for name, work, note in writes if r % 2 == 0 else writes[::-1]:
            table.measure(name, work, note)
    store = ActivationStore.open(folder / "store")
    shards = sorted((folder / "store" / "shards").iterdir())
    for r in range(rounds):
        cold: list[Callable[[], None]] = [
            lambda: table.measure(
                SEQUENTIAL, lambda: read_plain(folder / "plain", buffer), "4 MiB at a time, the system reading ahead"
            ),
            lambda r=r: cold_epochs(store, r, table),
            lambda: table.measure(PAST_CACHE, lambda: read_bare(shards, 4 << 20, 1), "O_DIRECT, 4 MiB at a time"),
            lambda: table.measure(
                PAST_CACHE_SHUFFLED,
                lambda: read_bare(shards, 64 * ROW, 8),
                "O_DIRECT, 256 KiB at a time as in an epoch, 8 threads; nothing is done with the bytes",
            ),
        ]
        for measure in cold if r % 2 == 0 else cold[::-1]:
            drop(folder / "plain", *shards)
            measure()
        in_cache(shards)
        warm = iter(store.batches("x", BATCH, seed=r + 50, memory_limit=BUFFERS))
        table.measure(WARM, lambda warm=warm: epoch(warm, len(store)))
        warm.close()
    return store


def peers(folder: Path, table: Table, n: int, rounds: int) -> None:
    """Shuffled reading as other caches do it, ``n`` rows each."""
    import datasets
    import h5py

    block = rows(4096)
    with h5py.File(folder / "peer.h5", "w") as f:
        f.create_dataset("chunked", (n, WIDTH), "u2", chunks=(128, WIDTH))
        f.create_dataset("contiguous", (n, WIDTH), "u2")
        for name in ("chunked", "contiguous"):
            for i in range(0, n, 4096):
                f[name][i : i + 4096] = block[: min(4096, n - i)]
    np.concatenate([block] * -(-n // 4096))[:n].tofile(folder / "peer.bin")
    datasets.disable_progress_bars()
    features = datasets.Features({"x": datasets.Array2D(shape=(128, WIDTH), dtype="float16")})
    sequences = block.reshape(-1, 128, WIDTH).view(np.float16) * np.float16(0)

    def generate() -> Iterator[dict[str, np.ndarray]]:
        for i in range(n // 128):
            yield {"x": sequences[i % len(sequences)]}

    arrow = datasets.Dataset.from_generator(generate, features=features, cache_dir=str(folder / "hf"))
    arrow.save_to_disk(str(folder / "arrow"))
    arrow = datasets.load_from_disk(str(folder / "arrow"))

    def fancy(name: str, count: int, seed: int) -> int:
        with h5py.File(folder / "peer.h5", "r") as f:
            picks = np.random.default_rng(seed).permutation(n)[:count]
            for i in range(0, count, 512):
                f[name][np.sort(picks[i : i + 512])]
        return count * ROW

    def gather(seed: int) -> int:
        x = np.memmap(folder / "peer.bin", np.uint16, "r", shape=(n, WIDTH))
        order = np.random.default_rng(seed).permutation(n)
        for i in range(0, n, BATCH):
            torch.from_numpy(x[order[i : i + BATCH]].view(np.int16)).view(torch.bfloat16).float()
        return n * ROW

    def saelens(seed: int) -> int:
        shuffled = arrow.shuffle(seed=seed).with_format("torch")
        for i in range(0, len(shuffled), 32):
            shuffled[i : i + 32]["x"].float()
        return len(shuffled) * 128 * ROW

    def saev(seed: int) -> int:
        x = np.memmap(folder / "peer.bin", np.uint16, "r", shape=(n // 128, 128, WIDTH))
        rng, reservoir = np.random.default_rng(seed), []
        for i in rng.permutation(n // 128):
            reservoir.append(np.array(x[i]))
            if len(reservoir) == 64 or i == n // 128 - 1:
                flat = np.concatenate(reservoir)
                torch.from_numpy(flat[rng.permutation(len(flat))].view(np.int16)).view(torch.bfloat16).float()
                reservoir = []
        return n * ROW

    few = max(512, n // 16)
    for r in range(rounds):
        drop(folder / "peer.h5")
        table.measure(
            "h5py fancy index, contiguous, cold",
            lambda r=r: fancy("contiguous", few, r),
            "h5py itself; 512 sorted random rows at a time",
        )
        table.measure("h5py fancy index, chunks of 128 rows", lambda r=r: fancy("chunked", few // 4, r), "h5py itself")
        drop(folder / "peer.bin")
        table.measure("np.memmap gather of random rows, cold", lambda r=r: gather(r), "NumPy itself")
        table.measure("np.memmap gather of random rows, warm", lambda r=r: gather(r + 9))
        files = list((folder / "arrow").glob("*.arrow"))
        drop(*files)
        table.measure(
            "SAELens' cache (Arrow sequences), shuffled, cold",
            lambda r=r: saelens(r),
            "datasets itself, SAELens' layout and calls imitated; float16, Arrow has no bfloat16",
        )
        drop(folder / "peer.bin")
        table.measure(
            "saev-like memmap shards with a reservoir, cold",
            lambda r=r: saev(r),
            "imitated: random sequences into a reservoir of 64, one thread",
        )


def harvest_overhead(folder: Path, rounds: int) -> tuple[float, float, float]:
    """Processor seconds of a forward pass of mini-pythia and of harvesting the same tokens; their ratio (medians)."""
    from workbench.activations.harvesting.forward import ModelProducer
    from workbench.activations.harvesting.recipe import HarvestRecipe
    from workbench.activations.harvesting.run import prepare
    from workbench.corpus import TokenPlan

    n = 256
    plan = TokenPlan(
        np.random.default_rng(0).integers(1, 500, (n, 128)).astype(np.int32),
        np.zeros(n, np.int32),
        np.zeros(n, np.uint8),
    )
    recipe = HarvestRecipe.model_validate(
        {
            "id": "b",
            "sources": [{"model": "mini-pythia"}],
            "hooks": ["*R"],
            "n_seq": n,
            "dtype": "bfloat16",
            "seqs_per_shard": 128,
        }
    )
    spec, plan, models = prepare(recipe, plan)
    producer = ModelProducer(spec, plan.tokens, models)
    tokens = torch.from_numpy(plan.tokens.astype(np.int64))

    def forward() -> None:
        with torch.inference_mode():
            for i in range(0, n, 32):
                models["mini-pythia"](tokens[i : i + 32], return_type="logits")

    def harvest() -> None:
        shutil.rmtree(folder / "h", ignore_errors=True)
        fill(folder / "h", spec, plan.tokens, producer)

    forward()
    times: dict[str, list[float]] = {"forward": [], "harvest": []}
    for _ in range(2 * rounds + 1):
        for name, work in (("forward", forward), ("harvest", harvest)):
            begin = time.process_time()
            work()
            times[name].append(time.process_time() - begin)
    a, b = (float(np.median(times[k])) for k in ("forward", "harvest"))
    return a, b, b / a


def spread(values: np.ndarray, form: str) -> str:
    """Median, range and number of values."""
    low, mid, high = (form.format(v) for v in (values.min(), np.median(values), values.max()))
    return f"{mid} ({low} – {high}, n = {len(values)})"


def verdict(values: np.ndarray, least: float | None, form: str) -> str:
    """Whether the median reaches what was promised, if anything was."""
    return (
        "no promise"
        if least is None
        else f"≥ {form.format(least)} {'met' if np.median(values) >= least else '**missed**'}"
    )


def report(table: Table, overhead: tuple[float, float, float], memory: tuple[int, int], nbytes: int) -> str:
    """The table as Markdown."""
    best = {name: max(speeds) for name, speeds in table.speeds.items()}
    lines = [
        "# Activation store: measured",
        "",
        (
            f"`python benchmarks/store.py --write` on {platform.system()} {platform.release()}, {os.cpu_count()}"
            f" processors (load {os.getloadavg()[0]:.1f} meanwhile), Python {platform.python_version()}, torch"
            f" {torch.__version__}; {nbytes / 2**20:,.0f} MiB of bfloat16 rows of {WIDTH} numbers (4 KiB). Best of the"
            " rounds; other programs shared the machine, so read the ratios."
        ),
        "",
        "| what | MB/s | processor s/GB | note |",
        "|---|---:|---:|---|",
        *(
            f"| {name} | {speed / 1e6:,.0f} | {table.cost[name]:.2f} | {table.notes[name]} |"
            for name, speed in best.items()
        ),
        "",
        "| promise | measured | |",
        "|---|---:|---|",
    ]
    ratios = [
        ("writing, of a plain write + fsync", "store: harvest writer", "plain write + fsync", 0.5),
        ("first cold shuffled epoch, of a cold sequential read", EPOCH, SEQUENTIAL, 0.8),
        ("later cold shuffled epoch, of a cold sequential read", RUNNING, SEQUENTIAL, 0.8),
        ("later, of a sequential read past the cache", RUNNING, PAST_CACHE, None),
        ("later, of the bare shuffled read", RUNNING, PAST_CACHE_SHUFFLED, None),
    ]
    for what, name, of, least in ratios:
        lines.append(
            f"| {what} | {spread(table.ratios(name, of), '{:.0%}')} |"
            f" {verdict(table.ratios(name, of), least, '{:.0%}')} |"
        )
    warm = np.array(table.speeds[WARM]) / 1e9
    lines.append(f"| warm shuffled epoch, GB/s | {spread(warm, '{:.2f}')} | {verdict(warm, 1.0, '{:.0f}')} |")
    lines.append(
        f"| reader's memory above its {memory[1] / 2**20:.0f} MiB of buffers | {(memory[0] - memory[1]) / 2**20:.0f}"
        f" MiB | ≤ 64 MiB {'met' if memory[0] - memory[1] <= 64 << 20 else '**missed**'} |"
    )
    lines.append(
        "| harvest over the forward pass (processor time, mini-pythia, residual stream of every layer) |"
        f" {overhead[2] - 1:+.1%} | ≤ 10 % {'met' if overhead[2] <= 1.1 else '**missed**'} |"
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run everything in a scratch folder and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="128 MiB, one round")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks-store.md")
    parser.add_argument("--scratch", type=Path, default=None, help="folder on the disk to measure")
    args = parser.parse_args()
    torch.set_num_threads(1)
    n_seq, rounds = (256, 1) if args.quick else (8192, 5)
    folder = Path(tempfile.mkdtemp(prefix="store-bench-", dir=args.scratch))
    table = Table()
    try:
        store = ours(folder, table, n_seq, rounds)
        memory = memory_of_an_epoch(store)
        shutil.rmtree(folder / "store")
        (folder / "plain").unlink()
        peers(folder, table, min(n_seq * 32, 1 << 15), min(rounds, 3))
        overhead = harvest_overhead(folder, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = report(table, overhead, memory, n_seq * (CTX - 1) * ROW)
    print(text)
    if args.write:
        (Path(__file__).resolve().parent.parent / "docs" / "benchmarks-store.md").write_text(text)


if __name__ == "__main__":
    main()
