"""What operating systems do differently: each call that Linux, macOS or Windows lacks, with its plain second way.

The first way is the strongest one that the system has; the second is what every system has, and says in its docstring
what it does not promise. Names are looked up when they are used, so that a test may hide them and prove the second way.
No other module of the product touches a name that one of the three systems lacks, but for the two that read past
Linux' page cache.
"""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from sae.errors import UntrustedFile


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


PLATFORM = sys.platform
"""``linux``, ``darwin`` or ``win32``."""
PROC = Path("/proc")
fcntl = _optional("fcntl")
resource = _optional("resource")
_ONE_AT_A_TIME = threading.Lock()
_RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{n}" for device in ("com", "lpt") for n in range(1, 10))}
_PATIENCE = 1.0  # seconds for which a replaced file may still be open in another program (Windows)


def windows() -> bool:
    """Whether open files cannot be removed, folders cannot be flushed, and names are compared without case."""
    return PLATFORM == "win32"


def open_file(path: str | Path, *, write: bool = False, new: bool = False, create: bool = False) -> int:
    """A file by its number, in bytes, not inherited by children. A link, FIFO, device or folder is not opened.

    Without O_NOFOLLOW the name is looked at first, which somebody could exchange in between.

    Args:
        new: it must not exist. create: it may be missing.

    Raises:
        UntrustedFile: not a regular file. FileNotFoundError, FileExistsError: nothing there, or something.
    """
    flags = os.O_RDWR if write else os.O_RDONLY
    flags |= os.O_CREAT | os.O_EXCL if new else os.O_CREAT if create else 0
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    if not hasattr(os, "O_NOFOLLOW") and not new:
        with suppress(FileNotFoundError):
            _refuse_irregular(path, os.lstat(path).st_mode)
    try:
        fd = os.open(path, flags, 0o644)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            _refuse_irregular(path, stat.S_IFLNK)
        raise
    try:
        _refuse_irregular(path, os.fstat(fd).st_mode)
    except UntrustedFile:
        os.close(fd)
        raise
    return fd


def _refuse_irregular(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise UntrustedFile(
            f"{path} is a link, a folder or a device, not a regular file; it was not opened. Replace it by a copy of"
            " the file it stands for."
        )


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Read once into ``view`` from ``offset`` on; returns the bytes read. Threads may share ``fd``."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    with _ONE_AT_A_TIME:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


def write_at(fd: int, data: memoryview, offset: int) -> int:
    """Write once at ``offset``; returns the bytes written. Threads may share ``fd``."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _ONE_AT_A_TIME:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def allocate(fd: int, size: int) -> None:
    """Reserve ``size`` bytes for a file.

    Raises:
        OSError: the disk is full, or (ENOSYS and the like) the system or the disk reserves nothing.
    """
    if not hasattr(os, "posix_fallocate"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    os.posix_fallocate(fd, 0, size)


def expect(fd: int, *, in_order: bool) -> None:
    """Say how a file will be read: in order, or here and there, where nothing nobody asked for should be loaded."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL if in_order else os.POSIX_FADV_RANDOM)


def free_bytes(path: str | Path) -> int:
    """What this user may still write on the disk that holds ``path``."""
    return shutil.disk_usage(path).free


def flush(fd: int) -> None:
    """Bring a file's bytes to the disk itself: on macOS ``fsync`` stops at the disk's cache, F_FULLFSYNC does not."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            fcntl.fcntl(fd, full)
            return
        except OSError as e:  # a network disk
            if e.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(fd)


def flush_path(path: str | Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Windows knows no flush of a folder: its journal keeps names
    in order, and the last of them may be lost with the power.
    """
    if windows() and os.path.isdir(path):
        return
    flags = os.O_RDWR if windows() else os.O_RDONLY  # Windows flushes only what is open for writing
    fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    try:
        flush(fd)
    finally:
        os.close(fd)


def make_read_only(fd: int) -> None:
    """Take the right to write from a finished file. Not on Windows, where such a file cannot be removed."""
    if hasattr(os, "fchmod") and not windows():
        os.fchmod(fd, 0o444)


def name_once(old: Path, new: Path) -> None:
    """Give a file the name ``new``, which must be free; ``old`` may remain. A hard link never replaces, nor does a
    rename on Windows.

    Raises:
        FileExistsError: the name is taken. OSError: (EPERM, ENOTSUP and the like) the disk has no hard links.
    """
    if windows():
        os.rename(old, new)
    elif os.link in os.supports_follow_symlinks:
        os.link(old, new, follow_symlinks=False)
    else:
        os.link(old, new)


def replace(old: str | Path, new: str | Path) -> None:
    """Rename, replacing. On Windows it waits a moment for others to close what is replaced.

    Raises:
        PermissionError: it stays open.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            os.replace(old, new)
            return
        except PermissionError:
            if not windows() or time.monotonic() > until:
                raise
            time.sleep(0.02)


def reserved_name(name: str) -> bool:
    """Whether Windows cannot keep a file of that name (a device's, or with a full stop at its end)."""
    return name.split(".")[0].lower() in _RESERVED or name.endswith((".", " "))


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """The machine's memory."""
    return int(psutil.virtual_memory().total)


def open_files_limit() -> int:
    """How many files this process may have open; 512 where that is not said (what Windows allows by default)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else 512
    return limit if limit > 0 else 1 << 20


def limit_memory(extra: int) -> None:
    """Let this process take at most ``extra`` bytes more than it has now. Where the system sets no such limit, whoever
    started the process watches it (:func:`run_limited`).
    """
    if resource is None or PLATFORM != "linux":
        return
    used = psutil.Process().memory_info().vms
    _lower(resource.RLIMIT_AS, used + extra)


def limit_process(*, cpu_seconds: int, file_size: int) -> None:
    """Limits for the rest of this process, and no core file; nothing where the system sets none."""
    if resource is not None:
        for name, value in (("CPU", cpu_seconds), ("FSIZE", file_size), ("CORE", 0)):
            _lower(getattr(resource, f"RLIMIT_{name}"), value)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard < 0 else min(value, hard)
    resource.setrlimit(kind, (value, value))


def run_limited(
    command: Sequence[str], *, seconds: float, memory: int, env: dict[str, str], stdin: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, and kill it when it takes longer than ``seconds`` or holds more than ``memory`` bytes.

    The command should limit itself as well (:func:`limit_process`): this is what remains where a system sets no limits.

    Raises:
        subprocess.TimeoutExpired: it was killed for its time.
    """
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as child:
        ended = threading.Event()
        guard = threading.Thread(target=_watch, args=(child.pid, memory, ended), daemon=True)
        guard.start()
        try:
            out, err = child.communicate(timeout=seconds)
        except BaseException:
            child.kill()
            child.communicate()
            raise
        finally:
            ended.set()
            guard.join()
    return subprocess.CompletedProcess(list(command), child.returncode, out, err)


def _watch(pid: int, memory: int, ended: threading.Event) -> None:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        while not ended.wait(0.05):
            if process.memory_info().rss > memory:
                process.kill()


def bare_environment() -> dict[str, str]:
    """What a child that touches strangers' files needs of the environment: where programs and libraries lie."""
    names = ("PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "HOME", "USERPROFILE", "LD_LIBRARY_PATH")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
