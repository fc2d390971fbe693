"""Every example runs as its docstring says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
PRINTS = {
    "compare_architectures": r"mean r 0\.\d+ against 0\.\d+ by chance",
    "own_crosscoder": r"in both: \d+ of \d+ latents",
    "train_an_sae": r"explained variance 0\.[5-9]\d+ with 16 of 1024",
}


def test_every_example_is_tried():
    assert [s.stem for s in SCRIPTS] == sorted(PRINTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_example_runs(script, tmp_path):
    arguments = {"train_an_sae": [str(tmp_path / "sae")], "compare_architectures": [str(tmp_path / "ws")]}
    done = subprocess.run(
        [sys.executable, str(script), *arguments.get(script.stem, [])],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(PRINTS[script.stem], done.stdout), done.stdout
