"""The notebook in docs/: its cells are those of the script beside it, were executed without errors, and run on a
workspace.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.ui.synthetic import make_workspace
from tests.ui.synthetic_results import add_all

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_notebook", DOCS / "make_notebook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_notebook_is_the_executed_script(script: ModuleType) -> None:
    text = script.NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert [(c["cell_type"], "".join(c["source"])) for c in notebook["cells"]] == list(script.CELLS)
    outputs = [o for c in notebook["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    kinds = {kind for o in outputs for kind in o.get("data", {})}
    assert {"image/png", "text/html"} <= kinds
    assert len(text) < 1_000_000
    assert not re.search(r"(?<![\w/<])/(home|root|tmp|work|usr|Users)/", text)


def test_cells_run_on_another_workspace(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = make_workspace(tmp_path / "ws")
    add_all(workspace)
    monkeypatch.setenv("WORKBENCH_WORKSPACE", str(workspace.root))
    monkeypatch.setitem(__import__("sys").modules, "IPython.display", _Display())
    names: dict[str, Any] = {}
    for kind, source in script.CELLS:
        if kind == script.CODE:
            exec(compile(source, "cell", "exec"), names)
    assert names["made"].files["figure.png"].startswith(b"\x89PNG")
    assert names["page"].startswith(b"<!doctype html>")


class _Display(ModuleType):
    """What the cells show is not looked at here."""

    HTML = Image = staticmethod(lambda shown: shown)

    def __init__(self) -> None:
        super().__init__("IPython.display")
