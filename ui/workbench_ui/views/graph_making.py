"""The graph of a prompt of the reader's own: drawn by a process beside the pages, or by the command that is shown.

The process is ``workbench graph`` itself, one at a time over all sessions, so that the pages stay quick and hold no
model; what it refuses is said on the page in its own words.
"""

from __future__ import annotations

import atexit
import json
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import streamlit as st

from workbench.markup.tokens import escape
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.commands import absolute, run_html
from workbench_ui.kit.index import Entry

LONGEST = 300  # characters of a prompt
EVERY = 1.0  # seconds between two looks at the process
KEY = "gm_run"
_LOCK = threading.Lock()
_LIVE: list[Run] = []


@dataclass
class Run:
    """One process: the words after ``workbench``, what it prints, and when it was started."""

    words: tuple[str, ...]
    process: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]
    began: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> bool:
        return self.process.poll() is not None

    def result(self) -> tuple[str, str]:
        """(id of the graph, why there is none): one of them is empty."""
        said = [_read(f) for f in (self.out, self.err)]
        if self.process.returncode == 0:
            return str(json.loads(said[0])["id"]), ""
        lines = [x.strip() for x in said[1].splitlines() if x.strip()]
        return "", lines[-1] if lines else f"the command ended with {self.process.returncode} and said nothing."


def _read(f: IO[bytes]) -> str:
    f.seek(0)
    return f.read().decode("utf-8", "replace")


def own_prompt(entry: Entry) -> None:
    """A box for a prompt of the same model; a button that draws its graph, and the command that does the same."""
    prompt = st.text_input(
        "Graph of a prompt of your own",
        max_chars=LONGEST,
        placeholder="type a text and press Enter",
        width=560,
        **state.tie_text("ask", LONGEST),
    )
    found: Run | None = st.session_state.get(KEY)
    if prompt and prompt.strip():
        words = words_of(entry, str(prompt))
        if st.button(
            "Draw its graph",
            icon=":material/hub:",
            key="gm_draw",
            disabled=found is not None and not found.done,
            help="Runs the command below beside these pages: some seconds on a small model, minutes on a large one",
        ):
            found = start(words, data.workspace_folder())
            if found is None:
                panels.note("Another graph is being drawn. Wait until it is there.", "warn")
            st.session_state[KEY] = found
        panels.note(
            run_html(
                absolute(f"workbench {shlex.join(words[:-2])}", data.workspace_folder()) + " " + shlex.join(words[-2:])
            )
        )
    if found is not None:
        st.fragment(watch, run_every=None if found.done else EVERY)(found)


def words_of(entry: Entry, prompt: str) -> tuple[str, ...]:
    """What follows ``workbench``: the graph of ``prompt`` by the model, snapshot and dictionaries of ``entry``."""
    about = entry.metadata
    words = ["graph", "--model", str(about.get("model", ""))]
    words += ["--site", "TC"] if about.get("site") == "TC" else []
    words += ["--revision", str(about["revision"])] if about.get("revision") else []
    return (*words, "--", prompt)


def start(words: tuple[str, ...], workspace: Path) -> Run | None:
    """Begin; None where another one has not ended."""
    with _LOCK:
        if any(not r.done for r in _LIVE):
            return None
        out, err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 (the process writes while we read)
        command = [sys.executable, "-m", "workbench", *words[:-2], "--json", "--workspace", str(workspace), *words[-2:]]
        run = Run(words, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err), out, err)
        _LIVE[:] = [run]
        return run


@atexit.register
def _end() -> None:
    """A server that ends takes its process with it; a graph that is not whole is not there."""
    for run in _LIVE:
        if not run.done:
            run.process.terminate()


def watch(run: Run) -> None:
    """How long it has taken, then the graph or why there is none."""
    if not run.done:
        panels.note(
            f"The graph of <b>{escape(panels.clip(run.words[-1], 60))}</b> is being drawn, for"
            f" {time.monotonic() - run.began:.0f} seconds so far. The pages can be used meanwhile."
        )
        return
    id, why = run.result()
    if why:
        panels.problem("The graph was not drawn", why)
        return
    st.session_state.pop(KEY, None)
    state.put(gr=id, grv=None, ask=None, pin=None, links=None, do=None)
    st.rerun()
