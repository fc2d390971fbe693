"""The few system calls by which a store reaches the disk, with a place to make the N-th of them fail.

All bytes of a store are written through this module, none by the HDF5 library. ``WORKBENCH_FAULT`` rehearses failures
in tests: a comma-separated list of ``call:n:action``, for example ``link:3:kill`` (SIGKILL at the third link) or
``write:5+:ENOSPC`` (every write from the fifth on fails). Calls: open, write, fsync, link, rename, unlink, mkdir,
allocate, lock, any. Actions: ``kill``, ``short`` (a write of half the bytes), or an errno name.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sae import system
from sae.errors import UntrustedFile
from workbench.activations.disk import writer_token

ENV = "WORKBENCH_FAULT"
NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
NO_ALLOCATE = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


@dataclass
class FaultPlan:
    """Which call fails, when, and how. Counts calls by name, and all of them as ``any``."""

    rules: list[tuple[str, int, bool, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> FaultPlan:
        """Read the value of ``WORKBENCH_FAULT``; an empty text means no faults."""
        rules = []
        for item in filter(None, text.split(",")):
            call, n, action = item.split(":")
            rules.append((call, int(n.rstrip("+")), n.endswith("+"), action))
        return cls(rules)

    def at(self, call: str) -> str | None:
        """Count one call; kill or raise where a rule says so. Returns ``"short"`` for a short write."""
        hit = None
        for name in (call, "any"):
            n = self.counts[name] = self.counts.get(name, 0) + 1
            for rule_call, when, onward, action in self.rules:
                if rule_call == name and (n == when or (onward and n > when)):
                    hit = action
        if hit == "kill":
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows: SIGTERM ends at once
        if hit is not None and hit != "short":
            code = getattr(errno, hit)
            raise OSError(code, os.strerror(code))
        return hit


faults = FaultPlan.parse(os.environ.get(ENV, ""))
observer: Callable[..., None] | None = None
"""Called as ``observer(call, *arguments)`` after every successful call (used to replay a power loss)."""


def _done(call: str, *arguments: object) -> None:
    if observer is not None:
        observer(call, *arguments)


def open_new(path: Path) -> int:
    """Create a file that must not exist, for reading and writing."""
    faults.at("open")
    fd = system.open_file(path, write=True, new=True)
    _done("open", path)
    return fd


def allocate(fd: int, size: int) -> None:
    """Reserve ``size`` bytes, so that a full disk shows before the first row.

    Where nothing can be reserved the file only gets that length: a disk that fills meanwhile shows at the write.
    """
    try:
        faults.at("allocate")
        system.allocate(fd, size)
    except OSError as e:
        if e.errno not in NO_ALLOCATE:
            raise
        os.ftruncate(fd, size)
    _done("allocate", fd, size)


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """``pwrite`` until every byte is written: short writes and interruptions go on where they stopped."""
    view = memoryview(data).cast("B")
    while len(view):
        n = write_some(fd, view, offset)
        view, offset = view[n:], offset + n


def write_some(fd: int, view: memoryview, offset: int) -> int:
    """One ``pwrite``, again where it was interrupted; returns the bytes written."""
    while True:
        try:
            part = view[: max(1, len(view) // 2)] if faults.at("write") == "short" else view
            n = system.write_at(fd, part, offset)
        except InterruptedError:
            continue
        _done("write", fd, offset, view[:n])
        return n


def read_all(fd: int, view: memoryview, offset: int) -> int:
    """Read into ``view`` until it is full or the file ends; returns the bytes read."""
    done = system.read_at(fd, view, offset)
    total = done
    while done and total < len(view):
        done = system.read_at(fd, view[total:], offset + total)
        total += done
    return total


def expect(fd: int, *, in_order: bool) -> None:
    """Tell the system how a file will be read: in order, or here and there, which must not load what
    nobody asked for.
    """
    system.expect(fd, in_order=in_order)


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def fsync(fd: int) -> None:
    """Flush a file to disk. A failure is final: the kernel may have dropped the bytes, so nobody tries again."""
    faults.at("fsync")
    system.flush(fd)
    _done("fsync", fd)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    faults.at("fsync")
    system.flush_path(path)
    _done("fsync_folder", path)


def commit(tmp: Path, final: Path) -> bool:
    """Give a finished file its final name unless that name exists. Returns False where someone else was first.

    Where the file system has no hard links, a check and a rename stand in: of two writers at the same moment the later
    one wins. Afterwards ``tmp`` is gone and the name is durable.
    """
    try:
        faults.at("link")
        system.name_once(tmp, final)
        _done("link", tmp, final)
        mine = True
    except FileExistsError:
        mine = False
    except OSError as e:
        if e.errno not in NO_HARD_LINKS:
            raise
        mine = not os.path.lexists(final)
        if mine:
            rename(tmp, final)
    fsync_folder(final.parent)
    remove(tmp)
    return mine


def rename(old: Path, new: Path) -> None:
    """Rename, replacing."""
    faults.at("rename")
    system.replace(old, new)
    _done("rename", old, new)


def remove(path: Path) -> None:
    """Remove a file; one that is already gone is fine."""
    faults.at("unlink")
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    _done("unlink", path)


def make_folder(path: Path) -> None:
    """Create a folder and make its name durable; an existing one is fine, a link in its place is not."""
    faults.at("mkdir")
    try:
        os.mkdir(path)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise UntrustedFile(f"{path} is not a folder. Remove it, or choose another place.") from None
        return
    _done("mkdir", path)
    fsync_folder(path.parent)


def write_file(folder_tmp: Path, final: Path, data: bytes, *, replace: bool) -> bool:
    """Write a small file in full and make it appear at once, either replacing or never replacing.

    Returns whether ours is there.
    """
    tmp = folder_tmp / f"{final.name}.{writer_token.token()}.{os.urandom(4).hex()}.part"
    fd = open_new(tmp)
    try:
        try:
            write_all(fd, data, 0)
            fsync(fd)
        finally:
            os.close(fd)
        if not replace:
            return commit(tmp, final)
        rename(tmp, final)
        fsync_folder(final.parent)
        return True
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
