"""Whether every dependency has a wheel: resolves the whole tree for each Python and system, and downloads nothing.

    python tools/resolve.py              # needs uv (pip install uv)

Prints a table: how many distributions a bare install takes, or what cannot be had. "Resolved" is not "run".
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SOURCE_ONLY = "transformers-stream-generator"  # pure Python that TransformerLens asks for: no compiler is needed
SYSTEMS = {
    "Linux x86_64": "x86_64-manylinux_2_28",
    "Linux aarch64": "aarch64-manylinux_2_28",
    "macOS arm64": "aarch64-apple-darwin",
    "Windows x86_64": "x86_64-pc-windows-msvc",
}


def resolve(python: str, platform: str) -> str:
    """Number of distributions, or the first line of why there is no answer."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--no-header",
            "--no-annotate",
            "--only-binary",
            ":all:",
        ]
        + [
            "--no-binary",
            SOURCE_ONLY,
            "--python-version",
            python,
            "--python-platform",
            platform,
            str(ROOT / "pyproject.toml"),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = [line.strip(" ×╰─▶") for line in done.stderr.splitlines() if line.strip()]
        return "no: " + " ".join(reason)[:300]
    return str(sum("==" in line for line in done.stdout.splitlines()))


def main() -> int:
    print("| | " + " | ".join(PYTHONS) + " |\n|---|" + "---|" * len(PYTHONS))
    failed = False
    for name, platform in SYSTEMS.items():
        found = [resolve(python, platform) for python in PYTHONS]
        failed |= any(f.startswith("no") for f in found)
        print(f"| {name} | " + " | ".join(found) + " |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
