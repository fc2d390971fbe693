"""The process that opens HDF5 files of unknown origin. Run by path, by ``inspect`` beside it only.

It needs h5py and numpy and nothing of this program. It receives the file, opened, as its stdin, limits itself, walks
the file one component at a time and refuses whatever could lead out of it or exhaust the machine. Stdout carries one
line of JSON, then, for a read, the raw numbers.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}


class Refused(Exception):
    """The file is not safe to read; the message says why."""


def limit(values: dict[str, int]) -> None:
    """Limits of this process: address space, CPU seconds, no core file, no file growth, few open files."""
    try:
        import resource
    except ImportError:  # Windows: whoever started this process watches its memory and its time
        return
    for name, value in (
        ("AS", values["memory"]),
        ("CPU", values["cpu_seconds"]),
        ("CORE", 0),
        ("FSIZE", 0),
        ("NOFILE", 64),
    ):
        if name == "AS" and sys.platform == "darwin":  # macOS takes this limit and does not keep to it
            continue
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value, value) if hard < 0 else (min(value, hard), hard))


class Walk:
    """Everything reachable by hard links, counted and bounded."""

    def __init__(self, h5py: Any, limits: dict[str, int]):
        self.h5, self.limits = h5py, limits
        self.objects = 0
        self.seen: set[Any] = set()
        self.datasets: list[dict[str, Any]] = []

    def group(self, group: Any, prefix: str, depth: int) -> None:
        """Visit a group's members."""
        if depth > self.limits["depth"]:
            raise Refused(f"groups are nested deeper than {self.limits['depth']}")
        self.count(len(group))
        self.attributes(group, prefix or "/")
        address = self.h5.h5o.get_info(group.id).addr
        if address in self.seen:
            raise Refused(f"group {prefix or '/'} contains itself, or is reachable twice")
        self.seen.add(address)
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, self.h5.HardLink):
                raise Refused(f"{prefix}/{name} is a {type(link).__name__}: it points elsewhere")
            kind = group.get(name, getclass=True)
            if kind is self.h5.Group:
                self.group(group[name], f"{prefix}/{name}", depth + 1)
            elif kind is self.h5.Dataset:
                self.dataset(group[name], f"{prefix}/{name}")
            else:
                raise Refused(f"{prefix}/{name} is neither a group nor a dataset")

    def count(self, n: int) -> None:
        """Count objects before they are listed."""
        self.objects += n
        if self.objects > self.limits["objects"]:
            raise Refused(f"it holds more than {self.limits['objects']:,} objects")

    def attributes(self, thing: Any, name: str) -> None:
        """Attributes are sized, never read."""
        n = self.h5.h5a.get_num_attrs(thing.id)
        self.count(n)
        for i in range(n):
            a = self.h5.h5a.open(thing.id, index=i)
            if a.get_storage_size() > self.limits["attribute"]:
                raise Refused(
                    f"an attribute of {name} has {a.get_storage_size():,} bytes (limit {self.limits['attribute']:,})"
                )

    def dataset(self, d: Any, name: str) -> None:
        """Refuse a dataset that reads elsewhere, needs foreign code, or grows when read."""
        h5, plist = self.h5, d.id.get_create_plist()
        layout = plist.get_layout()
        if layout == h5.h5d.VIRTUAL or d.is_virtual:
            raise Refused(f"{name} is virtual: its data lies in other files")
        if layout != h5.h5d.CHUNKED and plist.get_external_count():
            raise Refused(f"{name} keeps its data in another file")
        if d.dtype.kind not in "iufb" or h5.check_vlen_dtype(d.dtype) or h5.check_ref_dtype(d.dtype):
            raise Refused(f"{name} has type {d.dtype}: only plain numbers are read")
        self.attributes(d, name)
        for i in range(plist.get_nfilters()):
            if plist.get_filter(i)[0] not in FILTERS:
                raise Refused(
                    f"{name} is compressed by HDF5 filter {plist.get_filter(i)[0]}; known are"
                    f" {', '.join(FILTERS.values())}"
                )
        declared, stored = int(d.id.get_space().get_simple_extent_npoints()) * d.dtype.itemsize, d.id.get_storage_size()
        if declared > self.limits["declared"] or declared > 50 * stored:
            raise Refused(f"{name} declares {declared:,} bytes and stores {stored:,}: reading it may fill the memory")
        chunk = d.dtype.itemsize
        for side in d.chunks or ():
            chunk *= side
        if chunk > self.limits["chunk"]:
            raise Refused(f"{name} has chunks of {chunk:,} bytes (limit {self.limits['chunk']:,})")
        self.datasets.append({"name": name, "dtype": d.dtype.str, "shape": list(d.shape), "bytes": declared})


def main() -> int:
    """``child.py REQUEST``, with the file at stdin.

    A JSON request with ``limits``, and for a read ``dataset`` and ``rows`` [first, last].
    """
    request = json.loads(sys.argv[1])
    limit(request["limits"])
    os.environ.pop("HDF5_PLUGIN_PATH", None)
    out = sys.stdout.buffer
    try:
        import h5py

        with os.fdopen(sys.stdin.fileno(), "rb", closefd=False) as raw, h5py.File(raw, "r") as f:
            walk = Walk(h5py, request["limits"])
            walk.group(f, "", 0)
            values = None
            if "dataset" in request:
                known = {d["name"]: d for d in walk.datasets}
                if request["dataset"] not in known:
                    raise Refused(f"it has no dataset {request['dataset']!r} (it has {', '.join(list(known)[:8])})")
                values = f[request["dataset"]][slice(*request["rows"])]
        answer = {"ok": True, "datasets": walk.datasets}
        if values is not None:
            answer |= {"dtype": values.dtype.str, "shape": list(values.shape)}
        out.write(json.dumps(answer).encode() + b"\n")
        if values is not None:
            out.write(values.tobytes())
    except Refused as e:
        out.write(json.dumps({"ok": False, "why": str(e)}).encode() + b"\n")
    except Exception as e:  # noqa: BLE001 (whatever a hostile file provokes is an answer)
        out.write(
            json.dumps({"ok": False, "why": f"it cannot be read: {type(e).__name__}: {str(e)[:200]}"}).encode() + b"\n"
        )
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
