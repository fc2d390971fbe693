"""Starting the real server for tests and screenshots."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(workspace: Path, port: int, **env: str) -> subprocess.Popen[bytes]:
    """`workbench ui` as a person starts it, without a terminal."""
    command = [sys.executable, "-m", "workbench", "ui", "--workspace", str(workspace), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(command, cwd=workspace.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_until_up(port: int, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Until the health page answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"the server ended: {process.stdout.read().decode()}")  # type: ignore[union-attr]
        try:
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).read() == b"ok"
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not come up")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
