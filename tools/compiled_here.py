"""How many distributions of an environment came as wheels with binaries, and whether any was compiled on this machine.

    python tools/compiled_here.py    # run it with the environment's Python; exit 1 if a compiler was needed

A registry's wheel is tagged with the oldest system it runs on (manylinux, macosx, win); what pip builds from source is
tagged with this machine's own (linux_x86_64). Pure Python needs no compiler either way.
"""

from __future__ import annotations

import sys
from importlib.metadata import distributions


def binaries() -> dict[str, str]:
    """The first tag of every distribution that is not pure Python."""
    found = {}
    for distribution in distributions():
        lines = (distribution.read_text("WHEEL") or "").splitlines()
        tags = [line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: ")]
        if tags and "Root-Is-Purelib: true" not in lines:
            found[distribution.metadata["Name"]] = tags[0]
    return found


def main() -> int:
    """Print the two numbers."""
    found = binaries()
    here = sorted(name for name, tag in found.items() if tag.rpartition("-")[2].startswith("linux_"))
    every = len(list(distributions()))
    print(f"{every} distributions, {len(found)} with binaries, {len(here)} compiled here {', '.join(here)}".rstrip())
    return int(bool(here))


if __name__ == "__main__":
    sys.exit(main())
