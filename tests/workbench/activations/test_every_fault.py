"""Every fault the store promises to survive has a test that names it and that `pytest -m faults` runs."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

FAULTS = {1, 2, *range(5, 13), 14, *range(16, 26), *range(27, 32), 33, 34, 36, 37, 38, 40}
"""What is done to a store: kills (1, 2), signals (5), power loss (6), damage (7–9, 20, 31, 34, 36), other plans and
weights (10, 11, 24), non-finite numbers (12), full, failing and poor disks (14, 16–18, 38), rivals (19, 21), forks
and resumed readers (22, 23), clocks (25), hostile files (27–30), names (33), absent libraries (37), a memory cap
(40)."""


def faults_named() -> tuple[dict[int, list[str]], list[str]]:
    """(test names by the number of the fault they name, those that `-m faults` would not run)."""
    found, unmarked = defaultdict(list), []
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        everywhere = any(
            isinstance(n, ast.Assign) and ast.unparse(n) == "pytestmark = pytest.mark.faults" for n in tree.body
        )
        for test in [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]:
            words = re.match(r"Faults? ((?:\d+(?:, | and )?)+)", ast.get_docstring(test) or "")
            if words is None:
                continue
            if not everywhere and "pytest.mark.faults" not in map(ast.unparse, test.decorator_list):
                unmarked.append(test.name)
            for number in re.findall(r"\d+", words[1]):
                found[int(number)].append(f"{path.stem}::{test.name}")
    return found, unmarked


def test_every_fault_is_injected():
    found, unmarked = faults_named()
    assert unmarked == []
    assert sorted(FAULTS - found.keys()) == [] and sorted(found.keys() - FAULTS) == []


if __name__ == "__main__":
    for fault, names in sorted(faults_named()[0].items()):
        print(f"{fault:3}  {', '.join(names)}")
