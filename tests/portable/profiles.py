"""Systems that are not at hand, played on Linux by hiding what they lack and refusing what they refuse.

``WORKBENCH_PROFILE=macos python -m pytest tests/…`` runs tests so; child processes inherit it through ``sitecustomize``
beside this file. Shown this way: that the product asks only for what the system has, and that its second ways are
right. Not shown: what the real system does differently behind the same names.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sae import system

PROFILES = ("linux-plain", "macos", "windows")
_LINUX_ONLY = ("posix_fallocate", "posix_fadvise", "O_DIRECT", "sched_getaffinity", "POSIX_FADV_RANDOM")
_POSIX_ONLY = (
    *("preadv", "pwritev", "pread", "pwrite", "fchmod", "fchown", "chown", "sysconf", "fork", "killpg"),
    *("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "mkfifo", "setsid", "nice"),
)
_NOWHERE = Path("/no/such/proc")


def apply(name: str) -> None:
    """Play the system ``name`` for the rest of this process.

    Raises:
        ValueError: no such profile.
    """
    if name not in PROFILES:
        raise ValueError(f"WORKBENCH_PROFILE = {name!r}; profiles are {', '.join(PROFILES)}")
    system.PROC = _NOWHERE
    _hide(os, *_LINUX_ONLY)
    {"linux-plain": _plain, "macos": _macos, "windows": _windows}[name]()


def _hide(module: Any, *names: str) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def _plain() -> None:
    """A network disk: no hard links, no locks, no reservation, one call a read."""
    _hide(os, "preadv", "pwrite")
    system.fcntl = None

    def link(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    os.link = link


def _macos() -> None:
    real, full = system.fcntl, 51

    def control(fd: int, command: int, *more: Any) -> Any:
        return os.fsync(fd) if command == full else real.fcntl(fd, command, *more)

    system.PLATFORM = "darwin"
    system.fcntl = SimpleNamespace(
        F_FULLFSYNC=full, fcntl=control, **{n: getattr(real, n) for n in ("flock", "LOCK_EX", "LOCK_SH", "LOCK_NB")}
    )


def _windows() -> None:
    open_file, read_link, list_folder = os.open, os.readlink, os.listdir

    def in_use(path: Any) -> bool:
        """Whether this process has the file, or a file below the folder, open."""
        at = os.path.realpath(os.path.dirname(os.path.abspath(path)))
        whole = os.path.join(at, os.path.basename(path))
        for fd in list_folder("/proc/self/fd"):
            try:
                target = read_link(f"/proc/self/fd/{fd}")
            except OSError:
                continue
            if target == whole or target.startswith(whole + os.sep):
                return True
        return False

    def guarded(call: Callable[..., Any], *, removes: bool) -> Callable[..., Any]:
        def guard(path: Any, *args: Any, **kwargs: Any) -> Any:
            there = os.path.lexists(path)
            locked = removes and there and os.path.isfile(path) and not os.lstat(path).st_mode & stat.S_IWUSR
            if there and (locked or in_use(path)):
                raise PermissionError(errno.EACCES, "it is open, or read-only", os.fspath(path))
            return call(path, *args, **kwargs)

        return guard

    def rename(call: Callable[..., Any], *, replaces: bool) -> Callable[..., Any]:
        def guard(old: Any, new: Any) -> None:
            if os.path.lexists(new):
                if not replaces:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(new))
                if os.path.isdir(new) or in_use(new):
                    raise PermissionError(errno.EACCES, "it is open, or a folder", os.fspath(new))
            call(old, new)

        return guarded(guard, removes=False)

    def open_(path: Any, flags: int, mode: int = 0o777, **kwargs: Any) -> int:
        if not isinstance(path, int) and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "folders cannot be opened", os.fspath(path))
        return open_file(path, flags, mode, **kwargs)

    fsync, make, control = os.fsync, os.mkdir, system.fcntl

    def flush(fd: int) -> None:
        if control.fcntl(fd, control.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "only files open for writing are flushed")
        fsync(fd)

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        if system.reserved_name(os.path.basename(os.fspath(path))):
            raise NotADirectoryError(errno.ENOTDIR, "a device has this name", os.fspath(path))
        make(path, *args, **kwargs)

    system.PLATFORM, system.fcntl, system.resource = "win32", None, None
    os.unlink = os.remove = guarded(os.unlink, removes=True)
    os.rmdir = guarded(os.rmdir, removes=True)
    os.rename, os.replace = rename(os.rename, replaces=False), rename(os.replace, replaces=True)
    os.open, os.fsync, os.mkdir = open_, flush, mkdir
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # as it is there
    _hide(os, *_POSIX_ONLY)
    multiprocessing.set_start_method("spawn", force=True)
