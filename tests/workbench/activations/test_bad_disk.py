"""Full, failing and poor disks: a clear error or the same bytes, and a resumed run completes the store."""

from __future__ import annotations

import errno
import os
import resource
import signal

import pytest

from sae import system
from sae.errors import OutOfSpace
from tests.workbench.activations.crashes import calls_of_a_harvest, finished_like, subset_of_right_one
from tests.workbench.activations.small import SPEC, in_child, make
from workbench.activations.disk import calls as disk

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("call", ["write", "allocate", "open", "fsync", "link", "mkdir"])
def test_disk_full_at_every_call(tmp_path, pristine, call):
    """Fault 14: OutOfSpace, no crash of the library, and the next run completes the store."""
    total = calls_of_a_harvest(tmp_path)[call]
    for n in range(1, total + 1, 1 if total < 12 else 9):
        folder = tmp_path / f"{call}{n}"
        disk.faults = disk.FaultPlan.parse(f"{call}:{n}+:ENOSPC")
        with pytest.raises(OutOfSpace, match="no space left"):
            make(folder)
        disk.faults = disk.FaultPlan()
        subset_of_right_one(folder)
        assert not (folder / "tmp").exists() or os.listdir(folder / "tmp") == []
        make(folder)
        finished_like(folder, pristine)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test itself forks")
def test_file_size_limit(tmp_path, pristine):
    """Fault 14, by the kernel itself: exit code 1 with OutOfSpace, no signal."""

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        with pytest.raises(OutOfSpace):
            make(tmp_path / "s")

    assert in_child(limited) == 0
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)


def test_too_little_space_is_seen_before_the_first_row(tmp_path, monkeypatch):
    """Fault 14: the message names what is needed and what is free."""
    monkeypatch.setattr(system, "free_bytes", lambda path: 1024)
    with pytest.raises(OutOfSpace, match=r"bytes needed, 1,024 free"):
        make(tmp_path / "s")


def test_failed_flush_is_not_repeated_on_the_same_file(tmp_path, pristine):
    """Fault 16: after EIO the shard is written again under a new name; the failed file is gone."""
    flushes, seen = [], []

    def watch(call, *a):
        if call in ("fsync", "fsync_folder"):
            flushes.append(os.readlink(f"/proc/self/fd/{a[0]}") if call == "fsync" else "")
        if call == "open" and a[0].name.startswith("00"):
            seen.append(a[0].name)

    disk.observer = watch
    make(tmp_path / "watched")
    nth = 1 + next(i for i, path in enumerate(flushes) if "/000001." in path)
    seen.clear()
    disk.faults = disk.FaultPlan.parse(f"fsync:{nth}:EIO")
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)
    assert len(seen) == SPEC.n_shards + 1 and len(set(seen)) == len(seen)
    disk.faults = disk.FaultPlan.parse(f"fsync:{nth}+:EIO")
    with pytest.raises(OSError, match="Input/output"):
        make(tmp_path / "never")
    subset_of_right_one(tmp_path / "never")


@pytest.mark.parametrize("fault", ["write:1+:short", "write:3:EINTR,write:20:EINTR,write:33:short"])
def test_short_and_interrupted_writes(tmp_path, pristine, fault):
    """Fault 17: identical bytes."""
    disk.faults = disk.FaultPlan.parse(fault)
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)


@pytest.mark.parametrize(
    "fault",
    ["link:1+:ENOTSUP", "lock:1+:ENOLCK", "allocate:1+:EOPNOTSUPP", "link:1+:EPERM,lock:1+:ENOSYS,allocate:1+:EINVAL"],
)
def test_poor_file_systems(tmp_path, pristine, fault):
    """Fault 38: no hard links, no locks, no allocation (each alone and all together): the same store by the fallback
    path.
    """
    disk.faults = disk.FaultPlan.parse(fault)
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)


def test_errors_of_the_system_keep_their_name(tmp_path):
    """Other failures are not dressed up as something else."""
    disk.faults = disk.FaultPlan.parse("fsync:1+:ENOMEM")
    with pytest.raises(OSError) as e:
        make(tmp_path / "s")
    assert e.value.errno == errno.ENOMEM
