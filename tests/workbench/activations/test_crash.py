"""Crashes, full disks and rivals while a store is written: what is committed is right, and a resumed run ends byte-identical."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sae.errors import OutOfSpace
from tests.workbench.activations.small import SPEC, content, copies_of_rows, in_child, make, make_spec, producer_of
from workbench.activations import disk
from workbench.activations.errors import StoreBusy, StoreMismatch
from workbench.activations.spec import read_spec
from workbench.activations.workers import joined

pytestmark = pytest.mark.faults


def subset_of_right_one(folder: Path, spec=SPEC) -> None:
    """What any interrupted store must be: each final name stands for verified content."""
    if (folder / "store.json").exists():
        assert read_spec(folder).store_id == spec.store_id
    if (folder / "shards").exists():
        copies_of_rows(folder, spec)


def finished_like(folder: Path, pristine: Path) -> None:
    assert content(folder) == content(pristine)
    assert os.listdir(folder / "tmp") == []
    assert os.listdir(folder / "quarantine") == []


def calls_of_a_harvest(tmp_path: Path) -> dict[str, int]:
    disk.faults = disk.FaultPlan()
    make(tmp_path / "counted")
    return dict(disk.faults.counts)


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


def start(folder: Path, pause: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.workbench.activations.small", str(folder), str(pause)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_random_kills_with_two_workers(tmp_path, pristine):
    """Fault 2 and the release gate: two workers, one or both killed at random times, fifty times; the last resume is undisturbed."""
    chance = random.Random(5)
    kills, harvests = 0, 0
    while kills < 50:
        folder = tmp_path / f"run{harvests}"
        harvests += 1
        for _ in range(5):
            workers = [start(folder, 0.05), start(folder, 0.05)]
            time.sleep(chance.uniform(0.3, 1.6))
            for w in workers if chance.random() < 0.5 else workers[:1]:
                if w.poll() is None:
                    w.kill()
                    kills += 1
            for w in workers:
                w.wait(timeout=60)
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


def test_interrupted_twice(tmp_path, pristine):
    """Fault 5: an impatient second Ctrl-C may leave a part, never a wrong shard."""
    worker = start(tmp_path / "s", 20)
    wait_for_shards(tmp_path / "s", 1)
    worker.send_signal(signal.SIGINT)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(timeout=30) in (130, 1, -signal.SIGINT)
    subset_of_right_one(tmp_path / "s")
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)


def wait_for_shards(folder: Path, n: int) -> None:
    end = time.monotonic() + 30
    while not (folder / "shards").exists() or len(os.listdir(folder / "shards")) < n:
        assert time.monotonic() < end, "no shard appeared"
        time.sleep(0.02)


class PowerLoss:
    """Replays a harvest's calls into another folder, dropping what was not flushed at a chosen moment.

    Bytes count from the file's fsync on, names from the folder's fsync on; un-synced ones survive by a coin's toss.
    """

    def __init__(self, root: Path):
        self.root, self.calls, self.paths = root, [], {}

    def observe(self, call, *arguments):
        if call == "open":
            self.last = arguments[0]
            self.calls.append((call, arguments[0]))
        elif call == "write":
            fd, offset, data = arguments
            self.calls.append(("write", Path(os.readlink(f"/proc/self/fd/{fd}")), offset, bytes(data)))
        elif call in ("fsync", "allocate"):
            self.calls.append((call, Path(os.readlink(f"/proc/self/fd/{arguments[0]}")), *arguments[1:]))
        else:
            self.calls.append((call, *arguments))

    def replay(self, n: int, target: Path, chance: random.Random) -> None:
        """The disk as it may be found after a power loss just after call ``n``."""
        nodes: dict[Path, dict] = {}  # every name as the running system saw it
        durable: dict[Path, dict] = {}  # names a loss cannot take away
        for call, *a in self.calls[:n]:
            if call == "open":
                nodes[a[0]] = {"synced": bytearray(), "pending": []}
            elif call == "allocate":
                nodes[a[0]]["pending"].append((None, a[1]))
            elif call == "write":
                nodes[a[0]]["pending"].append((a[1], a[2]))
            elif call == "fsync":
                apply(nodes[a[0]], nodes[a[0]]["pending"])
                nodes[a[0]]["pending"] = []
            elif call == "link":
                nodes[a[1]] = nodes[a[0]]
            elif call == "rename" and a[0] in nodes:
                nodes[a[1]] = nodes.pop(a[0])
            elif call == "unlink":
                nodes.pop(a[0], None)
            elif call == "fsync_folder":
                durable = {p: v for p, v in durable.items() if p.parent != a[0]} | {p: v for p, v in nodes.items() if p.parent == a[0]}
        found = {**durable, **{p: v for p, v in nodes.items() if p not in durable and chance.random() < 0.5}}
        for p in list(found):
            if p not in nodes and chance.random() < 0.5:
                del found[p]
        for folder in ("", "shards", "tmp", "quarantine"):
            (target / folder).mkdir(parents=True, exist_ok=True)
        for p, node in found.items():
            state = {"synced": bytearray(node["synced"]), "pending": []}
            apply(state, [w for w in node["pending"] if chance.random() < 0.5])
            (target / p.relative_to(self.root)).write_bytes(state["synced"])


def apply(node: dict, writes: list) -> None:
    for offset, data in writes:
        end = data if offset is None else offset + len(data)
        node["synced"].extend(bytes(max(0, end - len(node["synced"]))))
        if offset is not None:
            node["synced"][offset:end] = data


@pytest.mark.parametrize("images", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_power_loss(tmp_path, pristine, images):
    """Fault 6: whatever the loss takes, a final name implies verified content, and a resumed harvest completes the store."""
    recorder = PowerLoss(tmp_path / "live")
    disk.observer = recorder.observe
    make(tmp_path / "live")
    disk.observer = None
    chance = random.Random(3)
    lost = 0
    for i in range(images):
        target = tmp_path / "after"
        recorder.replay(chance.randrange(1, len(recorder.calls) + 1), target, chance)
        subset_of_right_one(target)
        lost += len(list((target / "shards").iterdir())) < SPEC.n_shards
        if i % 20 == 0:
            make(target)
            finished_like_but_for_foreign_parts(target, pristine)
        shutil.rmtree(target)
    assert lost > images // 4


def finished_like_but_for_foreign_parts(folder: Path, pristine: Path) -> None:
    """As :func:`finished_like`; parts of this very process are alive, so they stay until it ends."""
    assert content(folder) == content(pristine)
    assert all(f"-{os.getpid()}-" in name for name in os.listdir(folder / "tmp"))


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
    real = os.statvfs

    def nearly_full(path):
        s = real(path)
        return os.statvfs_result((s.f_bsize, 512, s.f_blocks, 2, 2, *tuple(s)[5:10]))

    monkeypatch.setattr(os, "statvfs", nearly_full)
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


def test_two_workers_share_one_plan(tmp_path, pristine):
    """Fault 19 as amended: same plan, shared work; nothing twice, nothing lost."""
    workers = [start(tmp_path / "s", 0.05) for _ in range(2)]
    assert [w.wait(timeout=60) for w in workers] == [0, 0]
    finished_like(tmp_path / "s", pristine)


def test_another_plan_meets_a_live_writer(tmp_path):
    """Fault 19: StoreBusy while the other is at work, StoreMismatch afterwards; the store is untouched."""
    other = make_spec(block_rows=7)
    with joined(tmp_path / "s", SPEC):
        with pytest.raises(StoreBusy, match=r"another plan.*block_rows: the store has 5, the request 7"):
            make(tmp_path / "s", other)
    with pytest.raises(StoreMismatch, match="block_rows: the store has 5, the request 7"):
        make(tmp_path / "s", other)
    assert read_spec(tmp_path / "s").store_id == SPEC.store_id


@pytest.mark.parametrize(
    "fault", ["link:1+:ENOTSUP", "lock:1+:ENOLCK", "allocate:1+:EOPNOTSUPP", "link:1+:EPERM,lock:1+:ENOSYS,allocate:1+:EINVAL"]
)
def test_poor_file_systems(tmp_path, pristine, fault):
    """Fault 38: no hard links, no locks, no allocation (each alone and all together): the same store by the fallback path."""
    disk.faults = disk.FaultPlan.parse(fault)
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)


@pytest.mark.parametrize("fault", ["link:4:kill,lock:1+:ENOLCK", "rename:3:kill,link:1+:ENOTSUP"])
def test_kill_on_poor_file_systems(tmp_path, pristine, fault):
    """Faults 1 and 38 together."""
    assert in_child(lambda: make(tmp_path / "s"), fault=fault) == -signal.SIGKILL
    subset_of_right_one(tmp_path / "s")
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)


def test_two_writers_where_locks_do_nothing(tmp_path, pristine, monkeypatch):
    """Fault 19 with flock patched to succeed always: one worker thinks itself alone and both still make one right store."""
    import fcntl
    import threading

    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    slow = producer_of(SPEC, 0.03)
    threads = [threading.Thread(target=make, args=(tmp_path / "s",), kwargs={"producer": slow, "slot": i, "slots": 2}) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    finished_like(tmp_path / "s", pristine)


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
    alive = store / "tmp" / f"000001.{disk.owner_token()}.aa.part"
    run = disk.owner_token().split("-")[0]
    dead = store / "tmp" / f"000002.{run}-999999-1.bb.part"
    reused = store / "tmp" / f"000003.{run}-{os.getpid()}-1.cc.part"
    stranger = store / "tmp" / "000000.deadbeef-12-34.dd.part"
    for part in (alive, dead, reused, stranger):
        part.write_bytes(b"x")
    (store / "seal.json").unlink()
    with joined(store, SPEC):
        assert sorted(os.listdir(store / "tmp")) == [alive.name]
    other = os.open(store / "LOCK", os.O_RDWR)
    disk.lock(other, exclusive=False)
    stranger.write_bytes(b"x")
    make(store)
    assert sorted(os.listdir(store / "tmp")) == sorted([alive.name, stranger.name])
    os.close(other)


def test_clock_zone_and_locale_do_not_matter(tmp_path, pristine):
    """Fault 25: shards and names are the same with another zone and locale, and with a clock that runs backwards."""
    env = {**os.environ, "TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8"}
    subprocess.run([sys.executable, "-m", "tests.workbench.activations.small", str(tmp_path / "s"), "0"], env=env, check=True)
    finished_like(tmp_path / "s", pristine)


def test_backward_clock(tmp_path, pristine, monkeypatch):
    """Fault 25: a clock that jumps back between any two looks."""
    ticks = iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    make(tmp_path / "s")
    finished_like(tmp_path / "s", pristine)


def test_errors_of_the_system_keep_their_name(tmp_path):
    """Other failures are not dressed up as something else."""
    disk.faults = disk.FaultPlan.parse("fsync:1+:ENOMEM")
    with pytest.raises(OSError) as e:
        make(tmp_path / "s")
    assert e.value.errno == errno.ENOMEM
