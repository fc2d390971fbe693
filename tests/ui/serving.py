"""Starting the real server for tests and benchmarks, and what they measure in the browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# milliseconds from a click on Next to the second frame after the new title
CLICK_TO_PAINT = """() => new Promise(done => {
                   const h = document.querySelector('.wb-title h1'), was = h.textContent, began = performance.now()
                   const watch = new MutationObserver(() => {
                     if (document.querySelector('.wb-title h1')?.textContent === was) return
                     watch.disconnect(); requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)))
                   })
                   watch.observe(document.body, { subtree: true, childList: true, characterData: true })
                   document.querySelector('.st-key-wb_next button').click()
                 })"""
# milliseconds of each of twelve steps of the training scrubber
SCRUB = """e => [...Array(12).keys()].map(s => {
             const t = performance.now(); e.value = s; e.dispatchEvent(new Event('input')); return performance.now() - t })"""


def start(workspace: Path, port: int, **env: str) -> subprocess.Popen[bytes]:
    """`workbench ui` as a person starts it, without a terminal."""
    command = [sys.executable, "-m", "workbench", "ui", "--workspace", str(workspace), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(
        command, cwd=workspace.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


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
