"""What a plan is made of: parts of the work, the layout over devices, and the time they take on a machine.

Amounts are per device. A part takes as long as its slowest resource; what it sends also pays for every collective.
Parts follow one another, so times add up: nothing is assumed to overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workbench.planning.machine import Machine

LABELS = {
    "bfloat16": "arithmetic",
    "float32": "arithmetic",
    "forward": "arithmetic",
    "stream": "memory bandwidth",
    "gather": "memory bandwidth",
    "select": "memory bandwidth",
    "decode": "memory bandwidth",
    "dots": "memory bandwidth",
    "scatter": "memory bandwidth",
    "adam": "memory bandwidth",
    "sort": "memory bandwidth",
    "disk_write": "disk",
    "disk_read": "disk",
    "network": "communication",
    "steps": "calls",
    "disk_save": "disk",
    "commits": "disk",
    "shards": "disk",
    "loads": "loading models",
}
NOTHING = "nothing"


@dataclass(frozen=True)
class Layout:
    """Devices in ``jobs`` groups that work on different dictionaries (or shards), each group a mesh ``data`` x
    ``latents``.
    """

    jobs: int = 1
    data: int = 1
    latents: int = 1

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.jobs * self.data * self.latents

    def __str__(self) -> str:
        return f"{self.jobs} jobs x data {self.data} x latents {self.latents}"


ONE = Layout()


@dataclass(frozen=True)
class Part:
    """One part of the work of one device: amounts by resource, bytes sent, collectives.

    ``group``: how many devices exchange with each other; ``one_of``: of so many devices one does this part, and the
    others wait.
    """

    name: str
    amounts: dict[str, float] = field(default_factory=dict)
    sent: float = 0.0
    collectives: float = 0.0
    group: int = 1
    one_of: int = 1

    def seconds(self, machine: Machine, devices: int = 1) -> tuple[float, str]:
        """(seconds, binding constraint) on a machine; ``devices`` work at once, so those of a node share its disk."""
        sharing = max(1, min(devices, machine.devices_per_node) // self.one_of)
        costs = {
            r: amount / machine.rate(r) * (sharing if r.startswith("disk") else 1) for r, amount in self.amounts.items()
        }
        if self.sent:
            link = machine.within if self.group <= machine.devices_per_node else machine.between
            costs["network"] = self.sent / link + self.collectives * machine.latency
        if not costs:
            return 0.0, NOTHING
        slowest = max(costs, key=lambda r: costs[r])
        return costs[slowest], LABELS.get(slowest, slowest)


@dataclass(frozen=True)
class Plan:
    """What a recipe needs: counts, bytes left on disk, peak memory by item (beyond the libraries), and its parts.

    ``memory`` is the device's, ``host`` that of the machine it sits in; where these are one, both count. ``unit``:
    bytes of one number for every token and unit of width that a language model runs on at once; its activations are as
    many units as the machine holds.
    """

    kind: str
    amounts: dict[str, float]
    disk_bytes: float
    memory: dict[str, float]
    parts: list[Part] = field(default_factory=list)
    layout: Layout = ONE
    sent_per_step: float = 0.0  # bytes a device sends per training step
    host: dict[str, float] = field(default_factory=dict)
    unit: float = 0.0
    notes: list[str] = field(default_factory=list)

    def memory_bytes(self, machine: Machine) -> float:
        """Peak memory of one device."""
        return machine.resident + sum(self.items(machine).values())

    def items(self, machine: Machine) -> dict[str, float]:
        """What fills the memory of one device."""
        running = {"language model at work": self.unit * machine.held} if self.unit else {}
        return {**self.memory, **running, **(self.host if machine.unified else {})}

    def on(self, machine: Machine) -> dict[str, Any]:
        """The plan as plain values with the hours it takes on ``machine`` and what binds."""
        timed = {p.name: p.seconds(machine, self.layout.devices) for p in self.parts}
        by_cause: dict[str, float] = {}
        for t, why in timed.values():
            by_cause[why] = by_cause.get(why, 0.0) + t
        slowest = max(timed, key=lambda name: timed[name][0])
        fits = self.memory_bytes(machine) <= machine.memory
        seconds = sum(t for t, _ in timed.values())
        return {
            "kind": self.kind,
            **{k: int(v) for k, v in self.amounts.items()},
            "disk_bytes": int(self.disk_bytes),
            "memory_bytes": int(self.memory_bytes(machine)),
            "memory": {"libraries": int(machine.resident), **{k: int(v) for k, v in self.items(machine).items()}},
            "host_bytes": int(sum(self.host.values())),
            "sent_per_step": int(self.sent_per_step),
            "layout": {
                "jobs": self.layout.jobs,
                "data": self.layout.data,
                "latents": self.layout.latents,
                "devices": self.layout.devices,
            },
            "machine": machine.name,
            "fits_in_memory": fits,
            "seconds": seconds,
            "hours": seconds / 3600,
            "device_hours": seconds / 3600 * self.layout.devices,
            "parts": {name: {"seconds": t, "bound_by": why} for name, (t, why) in timed.items()},
            "causes": by_cause,
            "binding": f"{slowest}: {timed[slowest][1]}" if fits else "memory size",
            "notes": self.notes,
        }


def size(n: float) -> str:
    """Bytes in a unit that reads well, powers of ten as disks and data sheets have them."""
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if n >= scale:
            return f"{n / scale:,.1f} {unit}"
    return f"{n / 1e6:,.0f} MB"
