"""Machines as numbers: described in small TOML files (``data/machines/``), or measured where this runs
(:mod:`.calibrate`).

A rate is what is reached, not what a data sheet promises. Described GPUs say in ``about`` where their figures come
from.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from sae.strict import StrictConfig


class Machine(StrictConfig):
    """Rates of one device, and how devices hang together. Bytes and bytes/s, FLOP/s, seconds.

    ``select``, ``decode``, ``dots``, ``scatter`` and ``adam`` default to what memory allows; measured machines have
    their own.
    """

    name: str
    about: str = ""
    memory: float = Field(gt=0, description="of one device")
    devices_per_node: int = Field(1, ge=1)
    bfloat16: float = Field(gt=0, description="dense product")
    float32: float = Field(gt=0)
    stream: float = Field(gt=0, description="memory read and written in order")
    gather: float = Field(gt=0, description="rows read from places all over memory")
    select: float = Field(0, ge=0, description="numbers per second that a top-k looks at")
    decode: float = Field(0, ge=0)
    dots: float = Field(0, ge=0)
    scatter: float = Field(0, ge=0)
    adam: float = Field(0, ge=0)
    sort: float = Field(2e9, gt=0, description="kept entries sorted per second")
    forward: float = Field(0, ge=0, description="FLOP/s of a model's forward pass, where measured")
    disk_write: float = Field(gt=0, description="of one node: rows of a store, digests and statistics included")
    disk_read: float = Field(gt=0)
    disk_save: float = Field(
        0, ge=0, description="checkpoints: weights and optimiser state with digests; 0 = as disk_write"
    )
    commit: float = Field(0, ge=0, description="seconds that making one checkpoint durable takes, however small")
    shard: float = Field(0, ge=0, description="seconds that making one shard of a store durable takes, however small")
    load: float = Field(
        0, ge=0, description="seconds that loading one language model of a recipe takes, digest included"
    )
    within: float = Field(1e10, gt=0, description="per device, to others of its node")
    between: float = Field(1e9, gt=0, description="per device, to other nodes")
    latency: float = Field(1e-4, ge=0, description="of one collective")
    step: float = Field(
        0, ge=0, description="time of a training step that no amount accounts for: calls, launches, small arrays"
    )
    unified: bool = Field(False, description="devices share the memory of the host (a CPU does)")
    resident: float = Field(4.5e8, ge=0, description="memory before any tensor: libraries, context of the device")
    held: float = Field(
        24, gt=0, description="numbers held at the peak of a forward pass, per token and unit of the model's width"
    )
    measured: bool = False

    def rate(self, resource: str) -> float:
        """Rate of a resource of :class:`workbench.planning.cost.Part`; what is counted one by one (steps, checkpoints,
        shards, models) has one too.
        """
        each = {"steps": self.step, "commits": self.commit, "shards": self.shard, "loads": self.load}.get(resource)
        if each is not None:
            return 1 / each if each else float("inf")
        own = getattr(self, resource)
        if own:
            return float(own)
        return {
            "select": self.stream / 8,
            "adam": self.stream,
            "forward": self.float32,
            "disk_save": self.disk_write,
        }.get(resource, self.gather)


def machines() -> dict[str, Path]:
    """The described machines: name -> file."""
    from workbench.config import data_dir

    return {p.stem: p for p in sorted((data_dir() / "machines").glob("*.toml"))}
