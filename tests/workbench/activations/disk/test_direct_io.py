"""Transfers past the page cache and gathering with helpers change the speed and nothing else."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.workbench.activations.small import content, copies_of_rows, in_child, make, make_spec, truth
from workbench.activations import ActivationStore
from workbench.activations.disk import aio, direct_io
from workbench.activations.disk import calls as disk
from workbench.activations.format.errors import ShardCorrupt
from workbench.activations.format.spec import Stream
from workbench.activations.read import gather
from workbench.activations.read import prefetch as ahead
from workbench.activations.read.shuffle import permutation

BOTH = ["a", "b"]
STREAMS = tuple(Stream(key=f"h{i:03d}", source=s, hook="x", at="x", width=512) for i, s in enumerate(BOTH))
SPEC = make_spec(streams=STREAMS, block_rows=2)
PREADV, PWRITE = getattr(os, "preadv", None), getattr(os, "pwrite", None)
FINISH, SYSTEM = aio.DirectReader._finish, aio._system


@pytest.fixture
def paged(tmp_path) -> Path:
    """A store whose blocks are whole pages, none of them cached."""
    folder = make(tmp_path / "paged", SPEC)
    forget(folder)
    return folder


def forget(folder: Path, share: float = 1.0) -> None:
    """Drop that share of every shard's pages from the cache."""
    for path in (folder / "shards").iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, int(path.stat().st_size * share), os.POSIX_FADV_DONTNEED)
        os.close(fd)


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.fixture(params=["in flight", "by threads"])
def direct_bytes(request, paged, monkeypatch) -> list[int]:
    """Sizes of the direct reads so far, on both ways; skips where the disk of the tests has none."""
    fd = os.open(paged / "plan.h5", os.O_RDONLY)
    if (again := direct_io.reopen(fd)) < 0:
        pytest.skip("this file system has no direct reading")
    os.close(again)
    os.close(fd)
    sizes = []

    def preadv(fd, buffers, offset):
        n = PREADV(fd, buffers, offset)
        if is_direct(fd):
            sizes.append(n)
        return n

    def finish(self, finish, done, n):
        if n:
            sizes.append(n)
        FINISH(self, finish, done, n)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(aio.DirectReader, "_finish", finish)
    if request.param == "by threads":
        monkeypatch.setattr(ahead, "direct_reader", lambda: None)
    elif (reader := aio.direct_reader()) is None:
        pytest.skip("this system has no asynchronous reading")
    else:
        reader.close()
    return sizes


def epochs(folder: Path, n: int = 1) -> torch.Tensor:
    return torch.cat(list(ActivationStore.open(folder).batches("x", 9, seed=5, source=BOTH, epochs=n)))


def test_the_rows_are_right_and_come_directly(paged, direct_bytes):
    got = epochs(paged)
    expected = np.concatenate([truth(SPEC, s.key) for s in STREAMS], axis=1)[: SPEC.train_rows]
    assert np.array_equal(np.sort(got[:, 3]), np.sort(expected[:, 3])) and got.shape == expected.shape
    assert sum(direct_bytes) == expected.nbytes
    assert torch.equal(epochs(paged), got) and sum(direct_bytes) == 2 * expected.nbytes, (
        "nothing was put into the cache"
    )


def test_the_second_epoch_is_kept(paged, direct_bytes):
    """Rows that come again are cached from the second epoch on, if they fit; then no epoch goes to the disk."""
    epochs(paged)
    first = sum(direct_bytes)
    known = epochs(paged, 2)
    # what is read ahead for the second epoch may be there before the last of the first is asked for
    assert first < sum(direct_bytes) <= 2 * first, "the second epoch went past the cache, or the first did not"
    fd = os.open(paged / "shards" / "000001.h5", os.O_RDONLY)
    if not direct_io.is_cached(fd, 4096, 4096):
        pytest.skip("this system does not tell what is cached")
    os.close(fd)
    for _ in range(5):  # a system short of memory may drop pages at once, but hardly five times
        before = sum(direct_bytes)
        assert torch.equal(epochs(paged, 2), known)
        if sum(direct_bytes) == before:
            return
    pytest.fail("rows that are cached were read from the disk")


def test_rows_that_do_not_fit_are_never_cached(paged, direct_bytes, monkeypatch):
    monkeypatch.setattr(direct_io, "fits", lambda nbytes: False)
    one = epochs(paged)
    once = sum(direct_bytes)
    assert torch.equal(epochs(paged, 3)[: len(one)], one) and sum(direct_bytes) == 4 * once


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_partly_cached(paged, share):
    known = epochs(paged)
    for path in (paged / "shards").iterdir():
        path.read_bytes()
    forget(paged, share)
    assert torch.equal(epochs(paged), known)


@pytest.mark.faults
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO, errno.EOPNOTSUPP])
def test_a_failing_direct_read_takes_the_usual_way(paged, direct_bytes, monkeypatch, code):
    """Fails at once, or (asynchronously) in the end: the rows are right all the same."""
    known = epochs(paged)
    failed = []

    def preadv(fd, buffers, offset):
        if is_direct(fd):
            failed.append(offset)
            raise OSError(code, os.strerror(code))
        return PREADV(fd, buffers, offset)

    def finish(self, finish, done, n):
        failed.append(n)
        FINISH(self, finish, done, 0)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(aio.DirectReader, "_finish", finish)
    assert torch.equal(epochs(paged), known) and failed


@pytest.mark.faults
@pytest.mark.parametrize("call, when", [("_SETUP", 1), ("_SUBMIT", 1), ("_SUBMIT", 3), ("_SUBMIT", 1000)])
def test_asynchronous_reading_that_is_refused(paged, monkeypatch, call, when):
    """Fault 17 for reads: the system takes one at a time, or refuses them at first or later; those
    take the usual way.
    """
    known, calls = epochs(paged), []

    def refuse(which, *arguments):
        if which == getattr(aio, call):
            calls.append(which)
            if len(calls) >= when:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            if which == aio._SUBMIT:
                arguments = (arguments[0], ctypes.c_long(1), arguments[2])
        return SYSTEM(which, *arguments)

    monkeypatch.setattr(aio, "_system", refuse)
    assert torch.equal(epochs(paged), known) and len(calls) >= min(when, 8)


@pytest.mark.faults
def test_a_lost_reading_thread_is_an_error(paged, monkeypatch):
    """Nobody waits for a thread that is gone."""
    if (reader := aio.direct_reader()) is None:
        pytest.skip("this system has no asynchronous reading")
    reader.close()

    def refuse(which, *arguments):
        if which == aio._GETEVENTS:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return SYSTEM(which, *arguments)

    monkeypatch.setattr(aio, "_system", refuse)
    with pytest.raises(OSError, match="Bad address"):
        epochs(paged)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_iteration_may_end_anywhere(paged, direct_bytes, taken):
    """Closing with reads on their way waits for them, and leaves no thread behind."""
    before = set(threading.enumerate())
    for _ in range(20):
        batches = iter(ActivationStore.open(paged).batches("x", 9, seed=5, source=BOTH, memory_limit=1 << 16))
        for _ in range(taken):
            next(batches)
        batches.close()
    assert set(threading.enumerate()) <= before


def test_few_open_files_are_enough(paged):
    """A group spread over more shards than may be open at a time."""
    known = epochs(paged)
    store = ActivationStore.open(paged)
    store.pool.capacity = 1
    assert torch.equal(torch.cat(list(store.batches("x", 9, seed=5, source=BOTH, epochs=1))), known)


def test_without_direct_reading(paged, monkeypatch):
    known = epochs(paged)
    monkeypatch.setattr(direct_io, "reopen", lambda fd: -1)
    assert torch.equal(epochs(paged), known)


@pytest.mark.faults
def test_a_direct_read_is_proven(paged, direct_bytes):
    """Fault 8: a byte that changed on the disk is found on this way as well."""
    path = paged / "shards" / "000001.h5"
    path.chmod(0o644)
    with path.open("r+b") as f:
        f.seek(ActivationStore.open(paged).pool.get(1)[0].layout.offsets["acts/h000"] + 5000)
        f.write(b"\xff\xff")
    forget(paged)
    with pytest.raises(ShardCorrupt, match="changed after"):
        epochs(paged)
    assert direct_bytes


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["write:1+:short", "write:9:EINTR,write:23:short"])
def test_writing_past_the_cache_gives_the_same_files(paged, tmp_path, fault, monkeypatch):
    """Fault 17 on this way: short and interrupted writes."""
    disk.faults = disk.FaultPlan.parse(fault)
    assert content(make(tmp_path / "again", SPEC)) == content(paged)
    disk.faults = disk.FaultPlan()
    monkeypatch.setattr(direct_io, "reopen", lambda fd, write=False: -1)
    assert content(make(tmp_path / "usual", SPEC)) == content(paged)


@pytest.mark.faults
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_disk_that_refuses_direct_writing(paged, tmp_path, monkeypatch, code):
    refused = []

    def pwrite(fd, data, offset):
        if is_direct(fd):
            refused.append(offset)
            raise OSError(code, os.strerror(code))
        return PWRITE(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert content(make(tmp_path / "again", SPEC)) == content(paged)
    assert len(refused) == SPEC.n_shards or direct_io.reopen(os.open(paged / "plan.h5", os.O_RDONLY)) < 0


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["write:8:kill", "write:23:kill", "write:12+:ENOSPC"])
def test_a_stopped_direct_write_is_made_again(paged, tmp_path, fault):
    """Faults 1 and 14 on this way."""
    folder = tmp_path / "stopped"
    assert in_child(lambda: make(folder, SPEC), fault=fault) != 0
    copies_of_rows(folder, SPEC)
    assert content(make(folder, SPEC)) == content(paged) and os.listdir(folder / "tmp") == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gathering_with_helpers(monkeypatch, dtype, mode):
    """Several threads give what one gives, also where the caller is in inference mode."""
    monkeypatch.setattr(gather, "_LEAST", 8)
    group = torch.arange(600.0).reshape(100, 6).to(dtype)
    index = torch.from_numpy(permutation(100, 4))[:37]
    gatherer = gather.Gatherer(1)
    gatherer.hands, gatherer.others = 4, ThreadPoolExecutor(3)
    with mode():
        out = gatherer.tensor(37, 12)
        gatherer.take([group, group], index, out)
    gatherer.close()
    assert torch.equal(out, torch.cat([group, group], 1)[index].float())


def test_memory_where_the_system_knows_no_flags(monkeypatch):
    for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE"):
        monkeypatch.delattr(direct_io.mmap, name, raising=False)
    array = direct_io.empty((3, 5), "<f4")
    array[:] = 7
    assert array.shape == (3, 5)
    assert not array.ctypes.data % direct_io.ALIGN
