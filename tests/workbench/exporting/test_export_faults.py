"""Exports under a killed process and a full disk: the old bundle or the new one, never half of one, and nothing else to
see.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sae.errors import OutOfSpace
from sae.files import write_bytes
from workbench.exporting.bundles import Bundle, write_bundle
from workbench.results.lists import LatentList, read_lists, save_list
from workbench.run import Run
from workbench.workspace import Workspace

pytestmark = pytest.mark.faults
AGAIN = Run(command="c", replace=True)
# what a process asks of the file system, each a place to die at
CALLS = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.scandir",
    "shutil.rmtree",
    "ctypes.dlsym",
)


def made(text: str) -> Bundle:
    """A bundle as the browser and the command line write it."""
    provenance = b'{"figure": "x", "spec": {}}'
    files = {"data.csv": text.encode(), "figure.pdf": text.encode() * 100, "provenance.json": provenance}
    return Bundle("x__12345678", "12345678", files)


def killed_at(n: int, action: Callable[[], object]) -> bool:
    """Run ``action`` in a forked process that is killed at its n-th call to the file system; False once it ends by
    itself.
    """
    child = os.fork()
    if child == 0:
        left = n

        def hook(event: str, _: tuple[object, ...]) -> None:
            nonlocal left
            if event in CALLS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the action failed by itself ({status})"
    return status == signal.SIGKILL


def exported(ws: Workspace) -> dict[str, bytes] | None:
    """What the pages would offer of the export, or None."""
    items = ws.items("exports")
    assert [i.id for i in items] in ([], ["x.12345678"])
    return {p.name: p.read_bytes() for p in items[0].path.iterdir()} if items else None


def test_killed_at_every_call_of_an_export(tmp_path: Path) -> None:
    """The whole new bundle, or what was there before; the index of the pages sees no part of anything."""
    from workbench_ui.kit.index import read_index

    ws = Workspace(tmp_path / "ws")
    old, new = made("old"), made("new")
    write_bundle(new, Workspace(tmp_path / "other"), run=AGAIN)
    whole = exported(Workspace(tmp_path / "other"))
    outcomes, n, before = set(), 1, exported(ws)
    for first in (True, False):
        n = 1
        while killed_at(n, lambda: write_bundle(new, ws, run=AGAIN)):
            found = exported(ws)
            assert found in (before, whole), f"half a bundle after call {n}"
            outcomes.add((first, found == whole))
            assert read_index(ws.root).problems == ()
            if found == whole:  # put back what was there
                _reset(ws, None if first else old)
            n += 1
        assert exported(ws) == whole and n > 10
        _reset(ws, old)
        before = exported(ws)
    assert outcomes >= {(True, False), (False, False), (False, True)}
    write_bundle(new, ws, run=AGAIN)  # the same command simply works afterwards
    assert exported(ws) == whole


def _reset(ws: Workspace, bundle: Bundle | None) -> None:
    import shutil

    shutil.rmtree(ws.root / "exports", ignore_errors=True)
    if bundle is not None:
        write_bundle(bundle, ws, run=AGAIN)


def test_killed_at_every_call_of_a_table_and_a_list(tmp_path: Path) -> None:
    target = tmp_path / "table.tex"
    write_bytes(target, b"old")
    n = 1
    while killed_at(n, lambda: write_bytes(target, b"new" * 10_000)):
        assert target.read_bytes() in (b"old", b"new" * 10_000)
        n += 1
    assert n > 4 and target.read_bytes() == b"new" * 10_000
    id, n = save_list(tmp_path, LatentList(name="mine")), 1
    while killed_at(n, lambda: save_list(tmp_path, LatentList(name="mine again"), id)):
        known, problems = read_lists(tmp_path)
        assert problems == [] and [x.name for x in known.values()] in (["mine"], ["mine again"])
        n += 1
    assert n > 4


def test_full_disk_keeps_the_old_bundle(tmp_path: Path) -> None:
    ws = Workspace(tmp_path / "ws")
    write_bundle(made("old"), ws, run=AGAIN)
    before = exported(ws)
    limit, signalled = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * 1024, limit[1]))
    try:
        with pytest.raises(OutOfSpace, match=r"no space left for .*x\.12345678.*Free some space"):
            write_bundle(made("a longer text that does not fit " * 40), ws, run=AGAIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, signalled)
    assert exported(ws) == before
    assert [p.name for p in (ws.root / "exports").iterdir()] == ["x.12345678"]
