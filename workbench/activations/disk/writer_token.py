"""Who writes a temporary file, said in its name, so that others can prove its writer dead before they remove it."""

from __future__ import annotations

import hashlib
import os
import platform

import psutil

from sae import system


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
        text = (system.PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink(
            system.PROC / "self/ns/pid"
        )
    except OSError:
        text = platform.node()
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def started(pid: int) -> str:
    """When the process started (clock ticks since boot, or elsewhere milliseconds of its clock); empty where there is
    no such process, or only its remains.
    """
    try:
        fields = (system.PROC / f"{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(round(process.create_time() * 1000))
    except psutil.NoSuchProcess:
        return ""
    except psutil.Error:  # it is there, and not ours to look at
        return "0"
