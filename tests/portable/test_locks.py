"""Locks by marks, where the system has none: what flock promises holds for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sae import system
from workbench.activations.disk import writer_token
from workbench.activations.disk.locks import Lock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["flock", "marks"])
def path(request, tmp_path, monkeypatch) -> Path:
    if request.param == "marks":
        monkeypatch.setattr(system, "fcntl", None)
    return tmp_path / "LOCK"


def test_many_share_and_one_is_alone(path):
    a, b, c = Lock(path), Lock(path), Lock(path)
    assert a.take(exclusive=False)
    assert b.take(exclusive=False)
    assert not c.take(exclusive=True)
    assert not a.take(exclusive=True)  # b is still there
    b.close()
    c.close()
    assert a.take(exclusive=False)
    assert a.take(exclusive=True)
    assert not Lock(path).take(exclusive=False)
    assert a.take(exclusive=False)  # steps down
    other = Lock(path)
    assert other.take(exclusive=False)
    a.close()
    a.close()  # twice is fine
    assert other.take(exclusive=True)
    other.close()


def test_a_killed_process_blocks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "fcntl", None)
    code = (
        "import sys; from pathlib import Path; from sae import system; system.fcntl = None\n"
        "from workbench.activations.disk.locks import Lock\n"
        "print(Lock(Path(sys.argv[1])).take(exclusive=True), flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "LOCK")], cwd=ROOT, stdin=-1, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline().strip() == "True"
    mine = Lock(tmp_path / "LOCK")
    assert not mine.take(exclusive=True)
    assert len(mine.others()) == 1
    child.kill()
    child.wait()
    assert mine.take(exclusive=True)
    assert mine.others() == []
    mine.close()
    assert [p.name for p in tmp_path.iterdir()] == ["LOCK"]


def test_a_process_is_known_dead_without_proc(monkeypatch):
    monkeypatch.setattr(system, "PROC", Path("/no/such/proc"))
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    since = writer_token.started(child.pid)
    name = f"{writer_token.machine_run()}-{child.pid}-{since}"
    assert since not in ("", "0")
    assert not writer_token.provably_dead(name)
    assert not writer_token.provably_dead(writer_token.token())
    child.kill()
    child.wait()
    assert writer_token.provably_dead(name)
    assert writer_token.provably_dead(f"{writer_token.machine_run()}-{child.pid}-1")  # its number was given away
    assert not writer_token.provably_dead("deadbeef-1-1")  # another machine's
