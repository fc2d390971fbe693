"""`make bench` starts every benchmark with --quick."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("[a-z]*.py"))


def test_there_are_benchmarks():
    assert len(BENCHMARKS) > 8


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: p.stem)
def test_every_benchmark_has_a_quick_form(path):
    """An option that one of them lacked would end the whole run there."""
    assert re.search(r'add_argument\(\s*"--quick"', path.read_text(encoding="utf-8"))
