"""The graph of the reader's own prompt: one process at a time, its result opened, its refusal said in its own words."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from tests.ui.conftest import page_text
from workbench.workspace import Workspace
from workbench_ui.views import graph_making
from workbench_ui.views.graph_making import Run, start

Open = Callable[..., AppTest]


def ended(program: str) -> Run:
    """A process of Python that has run ``program``."""
    out, err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 (read after the process has ended)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=out, stderr=err)
    process.wait(60)
    return Run(("graph", "--", "x"), process, out, err)


def test_what_a_process_says_is_read() -> None:
    made = ended(f"print({json.dumps(json.dumps({'id': 'mini-pythia.p.1'}))})")
    assert made.done and made.result() == ("mini-pythia.p.1", "")
    refused = ended("import sys; print('loading'); sys.exit('the prompt is empty. Type one.')")
    assert refused.result() == ("", "the prompt is empty. Type one.")
    assert ended("raise SystemExit(3)").result()[1] == "the command ended with 3 and said nothing."


def test_a_model_that_is_not_there_is_refused_in_the_commands_own_words(full: Workspace) -> None:
    run = start(("graph", "--model", "nobody", "--", "--def f("), full.root)
    assert run is not None
    assert start(("graph", "--model", "nobody", "--", "x"), full.root) is None  # one at a time
    run.process.wait(180)
    id, why = run.result()
    assert not id and "nobody" in why


def test_the_page_offers_the_button_and_the_same_command(open_page: Open, full: Workspace) -> None:
    plain = open_page(full, "graph")
    assert "gm_draw" not in [b.key for b in plain.button]
    at = open_page(full, "graph", ask="--def 'f'(")
    assert at.button(key="gm_draw").label == "Draw its graph"
    assert "graph --model mini-pythia --workspace" in page_text(at) and "-- &#x27;--def" in page_text(at)
    assert graph_making._LIVE == [] or all(r.done for r in graph_making._LIVE)  # nothing runs before the click
