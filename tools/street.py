"""The shape of the house: circles of files, and loose modules at the root of ``workbench/``.

    python tools/street.py            # print both
    python tools/street.py --check    # exit 1 where there are more than allowed

A circle is a set of files each of which can be reached from the others by imports. Imports inside functions and under
TYPE_CHECKING count; targets that are a package's ``__init__`` do not (it is a table of contents).
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sae", "crosscoders", "workbench", "ui/workbench_ui")
CIRCLES, FILES_OF_A_CIRCLE, LOOSE = 2, 2, 7


def modules() -> dict[str, Path]:
    """Every file of the product by its dotted name; packages without their ``__init__``."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to((ROOT / package).parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Dotted names of the product's modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


def circles() -> list[list[str]]:
    """Strongly connected components of more than one file (Tarjan 1972), largest first."""
    known = modules()
    files = {name for name, path in known.items() if path.name != "__init__.py"}
    after = {name: sorted({t for t in imports(known[name], known) if t in files and t != name}) for name in files}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in after[name]:
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    sys.setrecursionlimit(10_000)
    for name in sorted(files):
        if name not in index:
            visit(name)
    return sorted(found, key=lambda c: (-len(c), c))


def loose() -> list[str]:
    """Modules at the root of ``workbench/``."""
    return sorted(p.stem for p in (ROOT / "workbench").glob("*.py") if not p.stem.startswith("__"))


def main() -> int:
    """Print the shape; with ``--check`` fail where it is not what the house allows."""
    found, alone = circles(), loose()
    print(f"{len(found)} circles of files")
    for circle in found:
        print(f"  {len(circle)} files: {', '.join(circle)}")
    print(f"{len(alone)} loose modules at the root of workbench/: {', '.join(alone)}")
    wrong = len(found) > CIRCLES or any(len(c) > FILES_OF_A_CIRCLE for c in found) or len(alone) > LOOSE
    return int(wrong and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
