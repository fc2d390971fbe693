"""Several writers, abandoned parts, odd clocks: one right store."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from sae import system
from tests.workbench.activations.crashes import finished_like, start
from tests.workbench.activations.small import SPEC, make, make_spec, producer_of
from workbench.activations.disk import calls as disk
from workbench.activations.disk import writer_token
from workbench.activations.disk.locks import Lock
from workbench.activations.format.errors import StoreBusy, StoreMismatch
from workbench.activations.format.spec import read_spec
from workbench.activations.write.fill import joined

pytestmark = pytest.mark.faults


def test_two_workers_share_one_plan(tmp_path, pristine):
    """Fault 19 as amended: same plan, shared work; nothing twice, nothing lost."""
    workers = [start(tmp_path / "s", 0.05) for _ in range(2)]
    assert [w.wait() for w in workers] == [0, 0]
    finished_like(tmp_path / "s", pristine)


def test_another_plan_meets_a_live_writer(tmp_path):
    """Fault 19: StoreBusy while the other is at work, StoreMismatch afterwards; the store is untouched."""
    other = make_spec(block_rows=7)
    with joined(tmp_path / "s", SPEC):
        with pytest.raises(StoreBusy, match=r"another harvest.*block_rows: the store has 5, the request 7"):
            make(tmp_path / "s", other)
    with pytest.raises(StoreMismatch, match="block_rows: the store has 5, the request 7"):
        make(tmp_path / "s", other)
    assert read_spec(tmp_path / "s").store_id == SPEC.store_id


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test itself forks")
def test_two_writers_where_locks_do_nothing(tmp_path, pristine, monkeypatch):
    """Fault 19 with locks patched to succeed always: one worker thinks itself alone and both still make one right
    store.
    """
    monkeypatch.setattr(Lock, "take", lambda self, *, exclusive: True)
    slow, process = producer_of(SPEC, 0.03), multiprocessing.get_context("fork").Process
    writers = [
        process(target=make, args=(tmp_path / "s",), kwargs={"producer": slow, "slot": i, "slots": 2}) for i in range(2)
    ]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    assert [w.exitcode for w in writers] == [0, 0]
    finished_like(tmp_path / "s", pristine)


@pytest.mark.skipif(system.windows(), reason="an open file cannot be removed there")
def test_a_part_taken_for_abandoned_is_made_again(tmp_path, pristine):
    """A stranger's machine may remove a live part where locks do not work; the shard is written again."""
    taken = []

    def thief(call, *a):
        if call == "fsync" and not taken:
            for part in (tmp_path / "s" / "tmp").glob("000001.*"):
                part.unlink()
                taken.append(part)

    disk.observer = thief
    make(tmp_path / "s")
    assert taken
    finished_like(tmp_path / "s", pristine)


def test_parts_of_the_dead_are_removed_and_those_of_the_living_are_not(store):
    run = writer_token.token().split("-")[0]
    alive = store / "tmp" / f"000001.{run}-{os.getppid()}-{writer_token.started(os.getppid())}.aa.part"
    dead = store / "tmp" / f"000002.{run}-999999-1.bb.part"
    reused = store / "tmp" / f"000003.{run}-{os.getpid()}-1.cc.part"
    stranger = store / "tmp" / "000000.deadbeef-12-34.dd.part"
    for part in (alive, dead, reused, stranger):
        part.write_bytes(b"x")
    (store / "seal.json").unlink()
    with joined(store, SPEC):
        assert sorted(os.listdir(store / "tmp")) == [alive.name]
    other = Lock(store / "LOCK")
    assert other.take(exclusive=False)
    stranger.write_bytes(b"x")
    forgotten = store / "tmp" / f"000004.{writer_token.token()}.ee.part"  # a signal came before anybody cared for it
    forgotten.write_bytes(b"x")
    make(store)
    assert sorted(os.listdir(store / "tmp")) == sorted([alive.name, stranger.name])
    other.close()


def test_clock_zone_and_locale_do_not_matter(tmp_path, pristine):
    """Fault 25: shards and names are the same with another zone and locale, and with a clock that runs backwards."""
    env = {**os.environ, "TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8"}
    subprocess.run(
        [sys.executable, "-m", "tests.workbench.activations.small", str(tmp_path / "s"), "0"], env=env, check=True
    )
    finished_like(tmp_path / "s", pristine)


def test_backward_clock(tmp_path, pristine, monkeypatch):
    """Fault 25: a clock that jumps back between any two looks."""
    ticks = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)
