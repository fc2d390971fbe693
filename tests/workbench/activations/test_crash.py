"""Kills and signals while a store is written: what is committed is right, and a resumed run ends byte-identical."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest

from tests.workbench.activations.crashes import (
    begun,
    calls_of_a_harvest,
    finished_like,
    start,
    subset_of_right_one,
    wait_for_shards,
)
from tests.workbench.activations.small import SPEC, in_child, make, producer_of
from workbench.activations.write.interrupts import Terminated, on_sigterm

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_at_every_call(tmp_path, pristine, stride):
    """Fault 1: SIGKILL at the N-th system call, for N = 1, 2, …"""
    total = calls_of_a_harvest(tmp_path)["any"]
    assert total > 90
    for n in range(1, total + 1, stride):
        folder = tmp_path / f"at{n}"
        assert in_child(lambda f=folder: make(f), fault=f"any:{n}:kill") == -signal.SIGKILL
        subset_of_right_one(folder)
        make(folder)
        finished_like(folder, pristine)
        shutil.rmtree(folder)
    assert in_child(lambda: make(tmp_path / "last"), fault=f"any:{total + 1}:kill") == 0


def test_killed_twice_during_resume(tmp_path, pristine):
    """Fault 2, the resume is killed as well, and more than once."""
    for calls in ("link:3:kill", "any:12:kill", "fsync:5:kill"):
        assert in_child(lambda: make(tmp_path / "s"), fault=calls) == -signal.SIGKILL
        subset_of_right_one(tmp_path / "s")
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)


def duration(folder) -> float:
    """Seconds two workers take for a harvest, without the time it takes to start them."""
    workers = [start(folder, 0.05) for _ in range(2)]
    for w in workers:
        begun(w)
    begin = time.monotonic()
    assert [w.wait() for w in workers] == [0, 0]
    return time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_random_kills_with_two_workers(tmp_path, pristine):
    """Fault 2 and the release gate: two workers, one or both killed at random times, fifty times; the last resume is
    undisturbed.
    """
    chance = random.Random(5)
    whole = duration(tmp_path / "timed")  # kills fall anywhere in a harvest, however fast the machine is
    kills, harvests = 0, 0
    while kills < 50:
        folder = tmp_path / f"run{harvests}"
        harvests += 1
        for _ in range(5):
            workers = [start(folder, 0.05), start(folder, 0.05)]
            for w in workers:
                begun(w)
            time.sleep(chance.uniform(0, whole))
            for w in workers if chance.random() < 0.5 else workers[:1]:
                if w.poll() is None:
                    w.kill()
                    kills += 1
            for w in workers:
                w.wait()
            subset_of_right_one(folder)
        make(folder)
        finished_like(folder, pristine)
    print(f"{kills} kills in {harvests} harvests")


@pytest.mark.parametrize("sent, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals(tmp_path, pristine, sent, code):
    """Fault 5: the unfinished shard is dropped, the lock is free, the exit code says which signal."""
    worker = start(tmp_path / "s", 20)
    wait_for_shards(tmp_path / "s", 1)
    worker.send_signal(sent)
    assert worker.wait(timeout=30) == code
    assert os.listdir(tmp_path / "s" / "tmp") == []
    subset_of_right_one(tmp_path / "s")
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)


@pytest.mark.parametrize("sent, handler", [(signal.SIGTERM, on_sigterm), (signal.SIGINT, signal.default_int_handler)])
def test_signal_where_python_swallows_it(tmp_path, pristine, sent, handler):
    """Fault 5: what a handler raises inside a destructor is printed and dropped; the harvest stops at the next batch
    all the same.
    """

    class Dying:
        def __del__(self):
            os.kill(os.getpid(), sent)

    def produce(lo: int, hi: int):
        for batch in producer_of(SPEC)(lo, hi):
            if lo == SPEC.seqs_per_shard:
                Dying()
            yield batch

    def work() -> None:
        signal.signal(sent, handler)
        try:
            make(tmp_path / "s", producer=produce)
        except (Terminated, KeyboardInterrupt):
            os._exit(130)

    assert in_child(work) == 130
    assert os.listdir(tmp_path / "s" / "tmp") == []
    assert len(os.listdir(tmp_path / "s" / "shards")) == 1
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)


def test_interrupted_twice(tmp_path, pristine):
    """Fault 5: an impatient second Ctrl-C may leave a part, never a wrong shard."""
    worker = start(tmp_path / "s", 20)
    wait_for_shards(tmp_path / "s", 1)
    worker.send_signal(signal.SIGINT)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(timeout=240) in (130, 1, -signal.SIGINT)
    subset_of_right_one(tmp_path / "s")
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)


@pytest.mark.parametrize("fault", ["link:4:kill,lock:1+:ENOLCK", "rename:3:kill,link:1+:ENOTSUP"])
def test_kill_on_poor_file_systems(tmp_path, pristine, fault):
    """Faults 1 and 38 together."""
    assert in_child(lambda: make(tmp_path / "s"), fault=fault) == -signal.SIGKILL
    subset_of_right_one(tmp_path / "s")
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)
