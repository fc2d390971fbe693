"""What an installation weighs and what starting it loads; run it with the Python of an environment that has the wheel.

    python tools/footprint.py

Prints the installed size of the bare dependency tree, what each direct dependency alone brings (with everything that
only it needs, so that it would leave with it), and for each way in: the processor's seconds until it is imported, and
which of the heavy packages it has loaded by then.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PRODUCT = "interpretability-workbench"
HEAVY = ("torch", "transformers", "transformer_lens", "umap", "numba", "datasets", "sklearn", "plotly", "streamlit")
WAYS_IN = ("workbench", "workbench.cli", "sae", "crosscoders")


def needs(name: str) -> set[str]:
    """What a distribution asks for without extras, of what is installed."""
    found = set()
    for text in distribution(name).requires or ():
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            found.add(canonicalize_name(wanted.name))
    return {n for n in found if installed(n)}


def installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def tree(roots: Iterable[str]) -> set[str]:
    """The distributions that some ask for, themselves included, whatever the depth."""
    found, todo = set(), list(roots)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += needs(name)
    return found


def size(name: str) -> int:
    """Bytes of a distribution's files."""
    paths = (Path(str(f.locate())) for f in distribution(name).files or ())
    return sum(p.stat().st_size for p in paths if p.is_file())


def main() -> int:
    direct = needs(PRODUCT)
    everything = tree(direct)
    sizes = {name: size(name) for name in everything}
    total = sum(sizes.values())
    print(f"{len(everything)} distributions, {total / 1e6:,.0f} MB; the product itself {size(PRODUCT) / 1e6:,.0f} MB\n")
    print("| without | MB less | share |\n|---|---|---|")
    own = {name: sum(sizes[n] for n in everything - tree(direct - {name})) for name in direct}
    for name, bytes_ in sorted(own.items(), key=lambda item: -item[1])[:12]:
        print(f"| {name} | {bytes_ / 1e6:,.1f} | {bytes_ / total:.1%} |")
    print("\n| import | seconds | loads |\n|---|---|---|")
    for module in WAYS_IN:
        code = (
            f"import sys, time; start = time.process_time(); import {module};"
            f" print(time.process_time() - start, *(h for h in {HEAVY!r} if h in sys.modules))"
        )
        runs = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)
        ]
        took = min(float(done.stdout.split()[0]) for done in runs)
        print(f"| {module} | {took:.2f} | {' '.join(runs[0].stdout.split()[1:]) or 'none of the heavy ones'} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
