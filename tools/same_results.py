"""Do two workspaces hold the same results? Files by digest; manifests but for the command, the code and input digests.

    python tools/same_results.py A B      # exit 1 where they differ

Input digests are left out because they change with the manifests they stand for.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

LEFT_OUT = ("command", "code", "inputs", "made_by")


def content(path: Path) -> str:
    """Digest of a file; of a manifest without what may differ."""
    if path.name not in ("manifest.json", "seal.json", "store.json"):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return json.dumps(_plain(json.loads(path.read_text())), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in LEFT_OUT}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def files(root: Path) -> dict[str, Path]:
    """Every file of a workspace's results, by its place in it."""
    return {
        p.relative_to(root).as_posix(): p
        for p in sorted(root.rglob("*"))
        if p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(root).parts)
        and p.name != "progress.json"
    }


def main(a: str, b: str) -> int:
    """Print what differs."""
    first, second = files(Path(a)), files(Path(b))
    for name in sorted(first.keys() ^ second.keys()):
        print(f"only in {a if name in first else b}: {name}")
    different = [n for n in sorted(first.keys() & second.keys()) if content(first[n]) != content(second[n])]
    for name in different:
        print(f"differs: {name}")
    print(f"{len(first.keys() & second.keys())} files in both, {len(different)} differ")
    return int(bool(different) or first.keys() != second.keys())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
