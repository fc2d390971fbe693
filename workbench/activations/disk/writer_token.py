"""Who writes a temporary file, said in its name, so that others can prove its writer dead before they remove it."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path


def token() -> str:
    """This process: ``<machine run>-<pid>-<process start>``, so that others can prove a writer dead."""
    return f"{machine_run()}-{os.getpid()}-{started(os.getpid())}"


def provably_dead(name: str) -> bool:
    """Whether the process that a token names is certainly gone: same machine run, and no such process any more."""
    try:
        run, pid, since = name.split("-")
        return run == machine_run() and started(int(pid)) != since
    except ValueError:
        return False


def machine_run() -> str:
    """Eight hex digits that change with every boot and every process-number space (container)."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        text = platform.node()
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def started(pid: int) -> str:
    """The process' start time in clock ticks since boot; empty where there is no such process, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return "" if not _exists(pid) else "0"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
