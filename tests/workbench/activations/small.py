"""A small store whose every number is known, and ways to make it in other processes.

``python -m tests.workbench.activations.small FOLDER``.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from workbench.activations.disk import calls as disk
from workbench.activations.format.spec import Source, StoreSpec, Stream
from workbench.activations.write.fill import fill

N_SEQ, CTX = 22, 9


def make_spec(**changes) -> StoreSpec:
    """22 sequences of 9 tokens, 3 streams over 2 sources, 4 shards (the last one short), blocks of 5 rows."""
    streams = [("a", "x", 6), ("a", "y", 3), ("b", "x", 4)]
    values = {
        "id": "small",
        "sources": (
            Source(name="a", model="model-a", weights="11"),
            Source(name="b", model="model-b", revision="step8", weights="22"),
        ),
        "streams": tuple(
            Stream(key=f"h{i:03d}", source=s, hook=h, at=f"blocks.0.{h}", width=w)
            for i, (s, h, w) in enumerate(streams)
        ),
        "plan": {"about": {}},
        "n_seq": N_SEQ,
        "ctx": CTX,
        "seqs_per_shard": 6,
        "batch_size": 4,
        "block_rows": 5,
        "heldout_seqs": 2,
        "made_by": {"workbench": "0.1.0"},
    }
    return StoreSpec(**{**values, **changes})


SPEC = make_spec()
TOKENS = np.random.default_rng(7).integers(0, 500, (N_SEQ, CTX)).astype(np.int32)


def truth(spec: StoreSpec, key: str) -> np.ndarray:
    """What stream ``key`` must hold: float32 [n_rows, width]."""
    width = next(s.width for s in spec.streams if s.key == key)
    row = np.arange(spec.n_rows, dtype=np.float64)[:, None]
    column = np.arange(width)[None] + 10 * int(key[1:])
    return np.sin(row * 0.37 + column * 1.7).astype(np.float32) * 3


def producer_of(spec: StoreSpec, pause: float = 0.0) -> Callable:
    """The producer that gives :func:`truth`, a batch at a time; from the second shard on it takes its time."""
    values = {s.key: truth(spec, s.key) for s in spec.streams}
    r = spec.rows_per_seq

    def produce(lo: int, hi: int):
        for i in range(lo, hi, spec.batch_size):
            j = min(hi, i + spec.batch_size)
            if pause and lo:
                time.sleep(pause)
            yield {key: v[i * r : j * r] for key, v in values.items()}

    return produce


def make(folder: Path, spec: StoreSpec = SPEC, **options) -> Path:
    """Make the small store in full."""
    fill(folder, spec, TOKENS[: spec.n_seq], options.pop("producer", None) or producer_of(spec), **options)
    return folder


def content(folder: Path) -> dict[str, str]:
    """Digest of every file that must be the same however the store came about."""
    files = [*sorted((folder / "shards").iterdir()), folder / "plan.h5", folder / "store.json", folder / "seal.json"]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def in_child(work: Callable[[], object], *, fault: str = "") -> int:
    """Run ``work`` in a forked process with injected faults; its wait status as a return code (-9 = killed, 1 =
    raised).
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            disk.faults = disk.FaultPlan.parse(fault)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def copies_of_rows(folder: Path, spec: StoreSpec) -> None:
    """Assert that every committed shard has each of its (sequence, position) pairs once, with the right numbers."""
    from workbench.activations.format.shard import open_shard, read_blocks

    for path in sorted((folder / "shards").iterdir()):
        index = int(path.stem)
        shard = open_shard(folder, spec, index)
        lo, hi = spec.rows(index)
        for s in spec.streams:
            name = f"acts/{s.key}"
            got = read_blocks(shard, name, 0, shard.layout.datasets[name].n_blocks)
            assert np.array_equal(got, truth(spec, s.key)[lo:hi])
        pairs = list(zip(shard.small("tok/seq").tolist(), shard.small("tok/pos").tolist()))
        assert pairs == [(q, p) for q in range(*spec.seqs(index)) for p in spec.positions.tolist()]
        shard.close()


if __name__ == "__main__":
    import signal

    from workbench.activations.write.interrupts import Terminated, on_sigterm

    signal.signal(signal.SIGTERM, on_sigterm)
    print("begun", flush=True)
    try:
        make(Path(sys.argv[1]), producer=producer_of(SPEC, float(sys.argv[2])))
    except Terminated:
        sys.exit(143)
    except KeyboardInterrupt:
        sys.exit(130)
