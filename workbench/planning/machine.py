"""Machines as numbers: described in small TOML files (``data/machines/``), or measured where this runs.

A rate is what is reached, not what a data sheet promises. Described GPUs say in ``about`` where their figures come from.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from sae.errors import UsageError
from sae.strict import StrictConfig, nearest, parse_config, read_toml


class Machine(StrictConfig):
    """Rates of one device, and how devices hang together. Bytes and bytes/s, FLOP/s, seconds.

    ``select``, ``decode``, ``dots``, ``scatter`` and ``adam`` default to what memory allows; measured machines have their own.
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
    disk_write: float = Field(gt=0, description="of one node, digests included")
    disk_read: float = Field(gt=0)
    within: float = Field(1e10, gt=0, description="per device, to others of its node")
    between: float = Field(1e9, gt=0, description="per device, to other nodes")
    latency: float = Field(1e-4, ge=0, description="of one collective")
    step: float = Field(0, ge=0, description="fixed time of a training step")
    unified: bool = Field(False, description="devices share the memory of the host (a CPU does)")
    resident: float = Field(4.5e8, ge=0, description="memory before any tensor: libraries, context of the device")
    measured: bool = False

    def rate(self, resource: str) -> float:
        """Rate of a resource of :class:`workbench.planning.cost.Part`."""
        own = getattr(self, resource)
        if own:
            return float(own)
        return {"select": self.stream / 8, "adam": self.stream, "forward": self.float32}.get(resource, self.gather)


def machines() -> dict[str, Path]:
    """The described machines: name -> file."""
    from workbench.config import data_dir

    return {p.stem: p for p in sorted((data_dir() / "machines").glob("*.toml"))}


def machine_named(name: str) -> Machine:
    """A described machine (its name, or a TOML file of one's own), or ``here`` for this one, measured.

    Raises:
        UsageError: no such machine. ConfigError: a bad file.
    """
    if name == "here":
        return this_machine()
    known = machines()
    path = Path(name) if name.endswith(".toml") and Path(name).is_file() else known.get(name)
    if path is None:
        raise UsageError(f"machine {name!r} is not described ({nearest(name, ['here', *known])}), and is no TOML file.")
    return parse_config(Machine, {"name": path.stem, **read_toml(path)}, where=str(path))


def this_machine(
    d_in: int = 256, d_sae: int = 4096, k: int = 32, rows: int = 1024, *, models: Any = (), disk: Path | None = None
) -> Machine:
    """Rates of this machine, measured now in a few seconds, at the shapes that will be used where they are given.

    ``models``: (bridge, hooks, tokens) per model whose forward pass is to be timed. The machine may be shared: the best of several.
    """
    import psutil
    import torch

    threads = torch.get_num_threads()
    source = torch.zeros(2**23)
    target = torch.empty_like(source)
    stream = 2 * source.numel() * 4 / best(lambda: target.copy_(source))
    return Machine(
        name="this machine",
        about=f"measured, {threads} thread{'s' * (threads > 1)}",
        memory=float(psutil.virtual_memory().total),
        stream=stream,
        resident=float(psutil.Process().memory_info().rss),
        measured=True,
        unified=True,
        **_dictionary_rates(d_in, d_sae, k, rows),
        **_disk_rates(disk),
        forward=_forward_rate(models),
    )


def _dictionary_rates(d: int, f: int, k: int, rows: int) -> dict[str, float]:
    """The operations of a training step, each alone, on the backend that training uses."""
    import torch

    from sae.backends import pick
    from sae.encode import tile_size

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, d, generator=generator)
    weight, bias = torch.randn(f, d, generator=generator), torch.zeros(f)
    backend = pick("auto", weight)
    tile = x[: min(rows, tile_size(f))]
    pre = backend.linear(tile, weight, bias)
    indices = (
        backend.top_k(backend.linear(x, weight, bias), k)[1] if rows * f <= 2**26 else torch.randint(f, (rows, k), generator=generator)
    )
    values = torch.rand(rows, k, generator=generator)
    flat, slopes, source = indices.flatten(), values.flatten(), torch.arange(rows).repeat_interleave(k)
    order = backend.transpose(flat, f)
    parameter = torch.nn.Parameter(torch.zeros(f, d))
    parameter.grad = torch.ones(f, d)
    optimizer = torch.optim.Adam([parameter], fused=True)
    moved = 4.0 * rows * k * d
    product = 2.0 * len(tile) * d * f / best(lambda: backend.linear(tile, weight, bias))
    return {
        "float32": product,
        "bfloat16": product,
        "gather": moved / best(lambda: backend.decode(values, indices, weight)),
        "select": len(tile) * f / best(lambda: backend.top_k(pre, k)),
        "decode": moved / best(lambda: backend.decode(values, indices, weight)),
        "dots": moved / best(lambda: backend.dots(x, weight, indices)),
        "scatter": (moved + 4.0 * f * d) / best(lambda: backend.scatter(order, slopes, source, x)),
        "sort": rows * k / best(lambda: backend.transpose(flat, f)),
        "adam": 7 * 4.0 * f * d / best(optimizer.step),
    }


def _disk_rates(folder: Path | None) -> dict[str, float]:
    """Writing with digests to the disk and reading with digests, as the store does."""
    import blake3
    import xxhash

    data = os.urandom(2**24)
    with tempfile.NamedTemporaryFile(dir=folder) as f:

        def write() -> None:
            blake3.blake3(data).digest()
            f.seek(0)
            f.write(data)
            f.flush()
            os.fsync(f.fileno())

        def read() -> None:
            f.seek(0)
            xxhash.xxh3_64_digest(f.read())

        return {"disk_write": len(data) / best(write, 3), "disk_read": len(data) / best(read, 3)}


def _forward_rate(models: Any) -> float:
    """FLOP/s of harvesting one batch with every model; 0 where none is given."""
    from workbench.activations.forward import capture
    from workbench.models.facts import deepest_layer, model_facts

    flops = seconds = 0.0
    for name, revision, bridge, hooks, tokens in models:
        facts = model_facts(name, revision)
        flops += tokens.numel() * facts.forward_flops(tokens.shape[1], deepest_layer(hooks))
        seconds += best(partial(capture, bridge, tokens, hooks), 3)
    return flops / seconds if seconds else 0.0


def best(action: Callable[[], Any], repeats: int = 5) -> float:
    """Shortest of a few timings, after one that is not counted."""
    action()
    shortest = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        shortest = min(shortest, time.perf_counter() - begin)
    return shortest
