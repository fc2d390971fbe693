"""What the crash tests share: the state every interrupted store must be in, and harvests in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.workbench.activations.small import SPEC, content, copies_of_rows, make
from workbench.activations.disk import calls as disk
from workbench.activations.format.spec import read_spec


def subset_of_right_one(folder: Path, spec=SPEC) -> None:
    """What any interrupted store must be: each final name stands for verified content."""
    if (folder / "store.json").exists():
        assert read_spec(folder).store_id == spec.store_id
    if (folder / "shards").exists():
        copies_of_rows(folder, spec)


def finished_like(folder: Path, pristine: Path) -> None:
    """The complete store, and nothing else."""
    assert content(folder) == content(pristine)
    assert os.listdir(folder / "tmp") == []
    assert os.listdir(folder / "quarantine") == []


def calls_of_a_harvest(tmp_path: Path) -> dict[str, int]:
    """System calls of an undisturbed harvest, by name."""
    disk.faults = disk.FaultPlan()
    make(tmp_path / "counted")
    return dict(disk.faults.counts)


def start(folder: Path, pause: float) -> subprocess.Popen:
    """A harvest in a process of its own; ``pause`` seconds per batch from the second shard on.

    It says ``begun`` on stdout first.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "tests.workbench.activations.small", str(folder), str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def begun(worker: subprocess.Popen) -> None:
    """Wait until a worker has started up and begins its harvest."""
    assert worker.stdout is not None and worker.stdout.readline() == b"begun\n"


def wait_for_shards(folder: Path, n: int) -> None:
    """Wait until ``n`` shards are committed."""
    end = time.monotonic() + 240  # a busy machine may take long to start a process
    while not (folder / "shards").exists() or len(os.listdir(folder / "shards")) < n:
        assert time.monotonic() < end, "no shard appeared"
        time.sleep(0.02)
