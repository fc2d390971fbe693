"""Power lost at any moment: a final name implies verified content."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.workbench.activations.crashes import subset_of_right_one
from tests.workbench.activations.small import SPEC, content, make
from workbench.activations.disk import calls as disk

pytestmark = pytest.mark.faults


class PowerLoss:
    """Replays a harvest's calls into another folder, dropping what was not flushed at a chosen moment.

    Bytes count from the file's fsync on, names from the folder's fsync on; un-synced ones survive by a coin's toss.
    """

    def __init__(self, root: Path):
        self.root, self.calls, self.paths = root, [], {}

    def observe(self, call, *arguments):
        if call == "open":
            self.last = arguments[0]
            self.calls.append((call, arguments[0]))
        elif call == "write":
            fd, offset, data = arguments
            self.calls.append(("write", Path(os.readlink(f"/proc/self/fd/{fd}")), offset, bytes(data)))
        elif call in ("fsync", "allocate"):
            self.calls.append((call, Path(os.readlink(f"/proc/self/fd/{arguments[0]}")), *arguments[1:]))
        else:
            self.calls.append((call, *arguments))

    def replay(self, n: int, target: Path, chance: random.Random) -> None:
        """The disk as it may be found after a power loss just after call ``n``."""
        nodes: dict[Path, dict] = {}  # every name as the running system saw it
        durable: dict[Path, dict] = {}  # names a loss cannot take away
        for call, *a in self.calls[:n]:
            if call == "open":
                nodes[a[0]] = {"synced": bytearray(), "pending": []}
            elif call == "allocate":
                nodes[a[0]]["pending"].append((None, a[1]))
            elif call == "write":
                nodes[a[0]]["pending"].append((a[1], a[2]))
            elif call == "fsync":
                apply(nodes[a[0]], nodes[a[0]]["pending"])
                nodes[a[0]]["pending"] = []
            elif call == "link":
                nodes[a[1]] = nodes[a[0]]
            elif call == "rename" and a[0] in nodes:
                nodes[a[1]] = nodes.pop(a[0])
            elif call == "unlink":
                nodes.pop(a[0], None)
            elif call == "fsync_folder":
                durable = {p: v for p, v in durable.items() if p.parent != a[0]} | {
                    p: v for p, v in nodes.items() if p.parent == a[0]
                }
        found = {**durable, **{p: v for p, v in nodes.items() if p not in durable and chance.random() < 0.5}}
        for p in list(found):
            if p not in nodes and chance.random() < 0.5:
                del found[p]
        for folder in ("", "shards", "tmp", "quarantine"):
            (target / folder).mkdir(parents=True, exist_ok=True)
        for p, node in found.items():
            state = {"synced": bytearray(node["synced"]), "pending": []}
            apply(state, [w for w in node["pending"] if chance.random() < 0.5])
            (target / p.relative_to(self.root)).write_bytes(state["synced"])


def apply(node: dict, writes: list) -> None:
    for offset, data in writes:
        end = data if offset is None else offset + len(data)
        node["synced"].extend(bytes(max(0, end - len(node["synced"]))))
        if offset is not None:
            node["synced"][offset:end] = data


@pytest.mark.parametrize("images", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_power_loss(tmp_path, pristine, images):
    """Fault 6: whatever the loss takes, a final name implies verified content, and a resumed harvest completes the
    store.
    """
    recorder = PowerLoss(tmp_path / "live")
    disk.observer = recorder.observe
    make(tmp_path / "live")
    disk.observer = None
    chance = random.Random(3)
    lost = 0
    for i in range(images):
        target = tmp_path / "after"
        recorder.replay(chance.randrange(1, len(recorder.calls) + 1), target, chance)
        subset_of_right_one(target)
        lost += len(list((target / "shards").iterdir())) < SPEC.n_shards
        if i % 20 == 0:
            make(target)
            finished_like_but_for_foreign_parts(target, pristine)
        shutil.rmtree(target)
    assert lost > images // 4


def finished_like_but_for_foreign_parts(folder: Path, pristine: Path) -> None:
    """As :func:`finished_like`; parts of this very process are alive, so they stay until it ends."""
    assert content(folder) == content(pristine)
    assert all(f"-{os.getpid()}-" in name for name in os.listdir(folder / "tmp"))
