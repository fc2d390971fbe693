"""Hostile HDF5 files: refused in bounded time by a process of their own; nothing outside the file is read."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from sae.errors import MissingError, UntrustedFile, UsageError
from workbench.activations.foreign.inspect import Limits, inspect, read_foreign

pytestmark = pytest.mark.faults


def external_link(f: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "secret.h5", "w") as g:
        g["secret"] = np.arange(5)
    f["link"] = h5py.ExternalLink(str(folder / "secret.h5"), "/secret")


def nested_external_link(f: h5py.File, folder: Path) -> None:
    external_link(f, folder)
    f.create_group("a/b")["link"] = h5py.ExternalLink(str(folder / "secret.h5"), "/")
    del f["link"]


def external_storage(f: h5py.File, folder: Path) -> None:
    f.create_dataset("x", (64,), "u1", external=[("/etc/passwd", 0, 64)])


def virtual(f: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((5,), "i8")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "secret", (5,))
    f.create_virtual_dataset("x", layout)


def fifo_link(f: h5py.File, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    f["link"] = h5py.ExternalLink(str(folder / "pipe"), "/")


def soft_loop(f: h5py.File, folder: Path) -> None:
    f["a"], f["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")


def hard_cycle(f: h5py.File, folder: Path) -> None:
    g = f.create_group("a")
    g["again"] = f["/"]


def very_deep(f: h5py.File, folder: Path) -> None:
    g = f
    for _ in range(10_000):
        g = g.create_group("d")


def many_objects(f: h5py.File, folder: Path) -> None:
    x = f.create_dataset("x", (1,), "f4")
    g = f.create_group("g")
    for i in range(11_000):
        g[str(i)] = x


def a_million_objects(f: h5py.File, folder: Path) -> None:
    f.create_dataset("x", (1,), "f4")
    g = f.create_group("g")
    for i in range(1_000_000):
        g.id.links.create_hard(b"%d" % i, f.id, b"x")


def petabytes(f: h5py.File, folder: Path) -> None:
    f.create_dataset("x", (1 << 54,), "u1", chunks=(1024,))


def from_nothing(f: h5py.File, folder: Path) -> None:
    f.create_dataset("x", (400_000_000,), "f4", chunks=(1 << 20,))


def gzip_bomb(f: h5py.File, folder: Path) -> None:
    f.create_dataset("x", data=np.zeros(16 << 20, "u1"), compression="gzip", chunks=(1 << 20,))


def huge_chunk(f: h5py.File, folder: Path) -> None:
    f.create_dataset("x", (1 << 27,), "u1", chunks=(1 << 27,))[0] = 1


def huge_attribute(f: h5py.File, folder: Path) -> None:
    f.attrs.create("x", np.zeros(20 << 20, "u1"))


def unusual_filter(f: h5py.File, folder: Path) -> None:
    f.create_dataset("x", data=np.arange(10), chunks=(10,), scaleoffset=0)


def unknown_filter(f: h5py.File, folder: Path) -> None:
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_chunk((10,))
    how.set_filter(32_001, h5py.h5z.FLAG_OPTIONAL, (1,))
    h5py.h5d.create(f.id, b"x", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((10,)), dcpl=how)


def strings(f: h5py.File, folder: Path) -> None:
    f["x"] = ["one", "two"]


def references(f: h5py.File, folder: Path) -> None:
    f.create_dataset("x", (2,), h5py.ref_dtype)


HOSTILE = {
    external_link: "ExternalLink",
    nested_external_link: "ExternalLink",
    external_storage: "another file",
    virtual: "virtual",
    fifo_link: "ExternalLink",
    soft_loop: "SoftLink",
    hard_cycle: "contains itself",
    very_deep: "nested deeper",
    many_objects: "more than 10,000 objects",
    a_million_objects: "more than 10,000 objects",
    petabytes: "declares",
    from_nothing: "declares",
    gzip_bomb: "declares",
    huge_chunk: "declares|chunks of",
    huge_attribute: "attribute",
    unusual_filter: "filter",
    unknown_filter: "filter",
    strings: "only plain numbers",
    references: "only plain numbers",
}


@pytest.mark.parametrize(
    "build", [pytest.param(b, id=b.__name__, marks=pytest.mark.slow if b is a_million_objects else ()) for b in HOSTILE]
)
def test_hostile_files(tmp_path, build):
    """Faults 27, 29, 30 and 37: UntrustedFile that says why, and not a byte of another file."""
    path = tmp_path / "hostile.h5"
    with h5py.File(path, "w", libver="latest") as f:
        build(f, tmp_path)
    secret = tmp_path / "secret.h5"
    if secret.exists():
        os.utime(secret, ns=(1, 1))
    with pytest.raises(UntrustedFile, match=HOSTILE[build]):
        inspect(path)
    if secret.exists():
        assert secret.stat().st_atime_ns == 1


def test_not_a_regular_file(tmp_path, monkeypatch):
    """Fault 28: FIFO, socket, device, folder, link: refused at once, before a process is started that
    could wait on it.
    """
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("it was opened"))
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
    (tmp_path / "real.h5").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real.h5")
    for path in (tmp_path / "fifo", tmp_path / "socket", Path("/dev/zero"), tmp_path, tmp_path / "link"):
        with pytest.raises(UntrustedFile):
            inspect(path)
    with pytest.raises(MissingError):
        inspect(tmp_path / "nothing.h5")


def test_limits_of_the_process(tmp_path):
    """Fault 30: a child without memory or time ends; the message says so."""
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["x"] = np.arange(10)
    with pytest.raises(UntrustedFile, match=r"limited|cannot be read"):
        inspect(tmp_path / "x.h5", Limits(memory=64 << 20))
    with pytest.raises(UntrustedFile, match="more than 0"):
        inspect(tmp_path / "x.h5", Limits(wall_seconds=0))


def test_honest_files_are_read(tmp_path):
    x = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("g/acts", data=x, chunks=(16, 7), compression="gzip", shuffle=True)
        f.attrs["note"] = "hello"
    assert inspect(tmp_path / "x.h5") == {
        "datasets": [{"name": "/g/acts", "dtype": "<f4", "shape": [100, 7], "bytes": 2800}]
    }
    assert np.array_equal(read_foreign(tmp_path / "x.h5", "g/acts", slice(10, 40)), x[10:40])
    with pytest.raises(UsageError, match="no dataset"):
        read_foreign(tmp_path / "x.h5", "other")
    with pytest.raises(UntrustedFile, match="limit"):
        read_foreign(tmp_path / "x.h5", "g/acts", limits=Limits(returned=1000))


@pytest.mark.parametrize("rounds", [6, pytest.param(300, marks=pytest.mark.slow)])
def test_fuzzed_foreign_files(tmp_path, rounds):
    """Fault 31: damaged files give an answer or UntrustedFile; a crash or a hang stays in the child."""
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("acts", data=np.arange(600.0).reshape(100, 6), chunks=(10, 6), compression="gzip")
    good = (tmp_path / "x.h5").read_bytes()
    chance = np.random.default_rng(1)
    for _ in range(rounds):
        bad = bytearray(good)
        for _ in range(chance.integers(1, 5)):
            bad[chance.integers(2000)] = chance.integers(256)
        (tmp_path / "y.h5").write_bytes(bad)
        try:
            inspect(tmp_path / "y.h5", Limits(wall_seconds=5))
        except UntrustedFile:
            continue
