"""Reading pages need no tensor library: the server that only shows results stays small."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.ui.conftest import APP
from tests.ui.serving import ROOT
from workbench.workspace import Workspace

# Runs in a process of its own: this one has torch from other tests.
VISIT = """
import sys
from pathlib import Path
from streamlit.testing.v1 import AppTest
app = Path(sys.argv[1])
for page in sorted(p.stem for p in (app.parent / "app_pages").glob("[!_]*.py")):
    at = AppTest.from_file(str(app), default_timeout=120).run()
    at.switch_page(f"app_pages/{page}.py")
    at.run()
    assert not at.exception, (page, [e.value for e in at.exception])
    assert "torch" not in sys.modules, f"{page} loads torch"
    print(page)
"""


def test_no_page_loads_torch_to_show_results(full: Workspace) -> None:
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", VISIT, str(APP)],
        env={**os.environ, "WORKBENCH_WORKSPACE": str(full.root), "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr[-2000:]
    assert len(said.stdout.split()) >= 14, said.stdout
