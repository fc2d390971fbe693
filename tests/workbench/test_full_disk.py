"""A disk that fills up while a result is written: one clear error, the previous result intact, nothing half-written."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sae.errors import OutOfSpace
from sae.files import write_json
from sae.log import COLUMNS, Table
from workbench.analysis.latents.encoded import Codes
from workbench.analysis.latents.records_build import BuiltRecords
from workbench.workspace import Workspace

pytestmark = pytest.mark.faults
ROOM = 16 * 1024


@contextmanager
def small_files(limit: int = ROOM) -> Iterator[None]:
    """No file of this process may grow beyond ``limit`` bytes, by the kernel's word."""
    before, signalled = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signalled)


def noise(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(n)


def records(n: int) -> BuiltRecords:
    none = np.zeros(0, np.int64)
    table = pd.DataFrame({"latent": np.arange(4)})
    return BuiltRecords(
        table, {"act_val": noise(n).astype(np.float32)}, ["a"], {}, {}, Codes(0, none, none, none, none, none, none)
    )


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "Parquet": lambda folder, n: pd.DataFrame({"value": noise(n)}).to_parquet(folder / "table.parquet", index=False),
    "array": lambda folder, n: np.save(folder / "a.npy", noise(n)),
    "archive": lambda folder, n: np.savez(folder / "a.npz", a=noise(n)),
    "JSON": lambda folder, n: write_json(folder / "a.json", noise(n).tolist()),
    "records": lambda folder, n: records(n).write(folder),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_keeps_the_old_result_and_leaves_nothing_of_the_new(tmp_path: Path, writer: str) -> None:
    ws, write = Workspace(tmp_path / "ws"), WRITERS[writer]
    with ws.create("latents", "a", command="test") as folder:
        write(folder, 10)
    before = {p: p.read_bytes() for p in ws.root.rglob("*") if p.is_file()}
    for id in ("a", "b"):
        with pytest.raises(OutOfSpace, match=f"no space left for .*{id}.*Free some space"), small_files():
            with ws.create("latents", id, replace=True, command="test") as folder:
                write(folder, 40_000)
    assert {p: p.read_bytes() for p in ws.root.rglob("*") if p.is_file()} == before
    assert [item.id for item in ws.items("latents")] == ["a"]
    with ws.create("latents", "b", command="test") as folder:  # once there is room, the same command works
        write(folder, 40_000)


def test_a_full_disk_under_the_training_log_leaves_the_old_log(tmp_path: Path) -> None:
    table = Table()
    table.add(dict.fromkeys(COLUMNS, 1.0))
    table.write(tmp_path / "metrics.parquet")
    before = (tmp_path / "metrics.parquet").read_bytes()
    table.restore(torch.from_numpy(noise(4000 * len(COLUMNS)).reshape(-1, len(COLUMNS))))
    with pytest.raises(OutOfSpace, match=r"metrics\.parquet"), small_files():
        table.write(tmp_path / "metrics.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.parquet"]
    assert (tmp_path / "metrics.parquet").read_bytes() == before
