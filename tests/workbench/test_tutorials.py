"""The tutorials run as they stand, from the first line to the last, one after another in one folder."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "tutorials"
ORDER = re.findall(r"^\d+\. \[.+?\]\((.+?)\.md\)", (FOLDER / "index.md").read_text(encoding="utf-8"), re.M)
SLOW = {"circuits", "training", "scale"}  # minutes on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tutorials")


def test_there_are_nine_and_all_are_run() -> None:
    assert len(ORDER) == 9 and {p.stem for p in FOLDER.glob("*.md")} == {*ORDER, "index"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in ORDER])
def test_a_tutorial_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks share their names, as in one script; each begins where the first one's workspace is."""
    blocks = re.findall(r"```python\n(.*?)```", (FOLDER / f"{name}.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(folder)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    names: dict[str, object] = {"__name__": f"tutorial_{name}"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{name}.md, block {number}", "exec"), names)
