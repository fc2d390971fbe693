"""What a recipe costs before it runs: steps, arithmetic, memory, disk, and the hours on a described machine.

Amounts are exact counts (one function each, the same the commands use). Times are a roofline: each part of the work takes
the longest of its arithmetic, its memory traffic and its disk traffic at the machine's rates; the part that takes longest names the
binding constraint. Rates of *this* machine are measured when asked; others are described in :data:`MACHINES`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sae.errors import ConfigError, UsageError
from sae.strict import nearest, parse_config, read_toml

if TYPE_CHECKING:
    from workbench.activations import HarvestRecipe
    from workbench.models.pretrain import PretrainRecipe
    from workbench.training import Job, TrainRecipe
    from workbench.workspace import Workspace

LIBRARIES_BYTES = 450 * 2**20  # torch, transformers and the rest, resident before any tensor


@dataclass(frozen=True)
class Machine:
    """Rates of one device. ``flops``: dense matrix product, FLOP/s; bandwidths in bytes/s; ``memory`` in bytes."""

    name: str
    flops: float
    memory_bandwidth: float
    disk_bandwidth: float
    memory: int
    devices: int = 1


# Achieved, not advertised, rates: bf16 products at about 60 % of the data-sheet peak, memory at 80 %, one NVMe drive.
MACHINES = {
    "h100": Machine("h100", 600e12, 2.7e12, 3e9, 80 * 10**9),
    "h200": Machine("h200", 600e12, 3.8e12, 3e9, 141 * 10**9),
    "a100": Machine("a100", 190e12, 1.6e12, 3e9, 80 * 10**9),
}


@dataclass(frozen=True)
class Part:
    """One part of the work and its three kinds of traffic."""

    name: str
    flops: float = 0.0
    memory_bytes: float = 0.0
    disk_bytes: float = 0.0

    def seconds(self, machine: Machine) -> tuple[float, str]:
        """(seconds, binding constraint) on a machine."""
        costs = {
            "arithmetic": self.flops / (machine.flops * machine.devices),
            "memory bandwidth": self.memory_bytes / (machine.memory_bandwidth * machine.devices),
            "disk": self.disk_bytes / machine.disk_bandwidth,
        }
        name = max(costs, key=lambda k: costs[k])
        return costs[name], name


@dataclass(frozen=True)
class Plan:
    """What a recipe needs. ``amounts`` are counts, ``disk_bytes`` what it leaves on disk, ``memory_bytes`` the peak resident size."""

    kind: str
    amounts: dict[str, int]
    disk_bytes: int
    memory_bytes: int
    parts: list[Part] = field(default_factory=list)

    def on(self, machine: Machine) -> dict[str, Any]:
        """The plan as plain values with the hours it takes on ``machine`` and what binds."""
        timed = {p.name: p.seconds(machine) for p in self.parts}
        slowest = max(timed, key=lambda name: timed[name][0])
        fits = self.memory_bytes <= machine.memory
        return {
            "kind": self.kind,
            **self.amounts,
            "disk_bytes": self.disk_bytes,
            "memory_bytes": self.memory_bytes,
            "machine": machine.name,
            "fits_in_memory": fits,
            "seconds": sum(t for t, _ in timed.values()),
            "parts": {name: {"seconds": t, "bound_by": why} for name, (t, why) in timed.items()},
            "binding": f"{slowest}: {timed[slowest][1]}" if fits else "memory size",
        }


def this_machine() -> Machine:
    """Rates of this machine, measured now in about a second (matrix product, copy, temporary file).

    The machine may be shared, so treat hours as hours, not minutes.
    """
    import os
    import tempfile

    import psutil
    import torch

    a, b = torch.randn(1024, 512), torch.randn(512, 4096)
    flops = 2 * 1024 * 512 * 4096 / _best(lambda: a @ b)
    source = torch.zeros(2**24)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() * 4 / _best(lambda: target.copy_(source))
    data = os.urandom(2**24)
    with tempfile.NamedTemporaryFile() as f:

        def write() -> None:
            f.seek(0)
            f.write(data)
            f.flush()
            os.fsync(f.fileno())

        disk = len(data) / _best(write, repeats=3)
    return Machine("this machine", flops, bandwidth, disk, psutil.virtual_memory().total)


def _best(action: Any, repeats: int = 5) -> float:
    """Shortest of a few timings, after one that is not counted."""
    action()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - begin)
    return best


# --- one plan per kind of recipe ---------------------------------------------------------------------------------------


def dictionary_parameters(d_in: int, d_sae: int) -> int:
    """Weights and biases of an untied dictionary."""
    return 2 * d_in * d_sae + d_in + d_sae


def plan_training(recipe: TrainRecipe, jobs: list[Job], dtype_bytes: int, row_bytes_read: int) -> Plan:
    """Training of ``jobs``: one dense product per step and dictionary, sparse work on k latents, Adam on every parameter."""
    rows = recipe.steps * recipe.batch_size
    product = selection = adam = sparse = 0.0
    parameters = 0
    for job in jobs:
        d, f, k = job.config.d_in, job.config.d_sae, job.config.k
        n = dictionary_parameters(d, f)
        parameters = max(parameters, n)
        product += 2.0 * rows * d * f
        selection += 2.0 * rows * f * dtype_bytes  # each tile is written once and read once
        sparse += 4.0 * rows * k * d * dtype_bytes * 2  # four gathers or scatters of k rows
        adam += 7.0 * n * dtype_bytes * recipe.steps  # read w, g, m, v and write w, m, v
    largest = max(dictionary_parameters(j.config.d_in, j.config.d_sae) for j in jobs)
    state = largest * dtype_bytes * 4  # weights, gradients, two moments
    buffers = 2 * 64 * 1024 * row_bytes_read + 3 * recipe.batch_size * max(j.config.d_in for j in jobs) * dtype_bytes
    return Plan(
        "train",
        {"dictionaries": len(jobs), "tokens": rows, "steps": recipe.steps, "parameters": parameters, "flops": int(product)},
        disk_bytes=sum(dictionary_parameters(j.config.d_in, j.config.d_sae) * dtype_bytes for j in jobs) + 2 * 3 * largest * dtype_bytes,
        memory_bytes=LIBRARIES_BYTES + state + buffers,
        parts=[
            Part("encoder product", flops=product),
            Part("selection", memory_bytes=selection),
            Part("sparse decoder and gradients", memory_bytes=sparse),
            Part("Adam", memory_bytes=adam),
            Part("reading rows", disk_bytes=rows * row_bytes_read * len({(j.source, j.hook) for j in jobs})),
        ],
    )


def plan_harvest(recipe: HarvestRecipe, models: list[tuple[int, list[int]]]) -> Plan:
    """Harvesting: ``models`` gives, per source, the parameters of the model and the widths of its hooks."""
    from workbench.activations.spec import STORED

    itemsize = {"<f4": 4, "<f2": 2, "<u2": 2}[STORED[recipe.dtype]]
    rows = recipe.n_seq * (recipe.ctx - len(recipe.exclude))
    row_bytes = sum(sum(widths) for _, widths in models) * itemsize
    tokens = recipe.n_seq * recipe.ctx
    shard = recipe.seqs_per_shard * (recipe.ctx - len(recipe.exclude)) * row_bytes
    bookkeeping = rows * (4 + 8 + 4 + 1)  # token id, sequence, position, flags
    return Plan(
        "harvest",
        {
            "sources": len(models),
            "tokens": tokens,
            "rows": rows,
            "shards": -(-recipe.n_seq // recipe.seqs_per_shard),
            "flops": int(sum(2.0 * p * tokens for p, _ in models)),
        },
        disk_bytes=rows * row_bytes + bookkeeping,
        memory_bytes=LIBRARIES_BYTES + sum(p for p, _ in models) * 4 + 2 * shard,
        parts=[
            Part("forward passes", flops=sum(2.0 * p * tokens for p, _ in models)),
            Part("writing shards", disk_bytes=rows * row_bytes + bookkeeping),
        ],
    )


def plan_pretraining(recipe: PretrainRecipe, parameters: int) -> Plan:
    """Pre-training a miniature model: six FLOP per parameter and token, a snapshot in half precision per saved step."""
    tokens = recipe.steps * recipe.batch * recipe.ctx
    return Plan(
        "pretrain",
        {
            "tokens": tokens,
            "steps": recipe.steps,
            "parameters": parameters,
            "snapshots": len(recipe.saved_steps),
            "flops": 6 * parameters * tokens,
        },
        disk_bytes=len(recipe.saved_steps) * parameters * 2,
        memory_bytes=LIBRARIES_BYTES + parameters * 16 + recipe.batch * recipe.ctx * recipe.d_model * recipe.n_layers * 4 * 24,
        parts=[Part("forward and backward", flops=6.0 * parameters * tokens), Part("AdamW", memory_bytes=28.0 * parameters * recipe.steps)],
    )


# --- from a recipe file ------------------------------------------------------------------------------------------------


def kind_of(values: dict[str, Any], where: str) -> str:
    """Which command a recipe is for, by its own keys.

    Raises:
        ConfigError: none of the known kinds.
    """
    if "architecture" in values:
        return "pretrain"
    if "store" in values or "expansions" in values or "sae" in values:
        return "train"
    if "sources" in values or "n_seq" in values:
        return "harvest"
    raise ConfigError(f"{where} is neither a pretrain (architecture), a harvest (sources, hooks) nor a train recipe (store, sites).")


def plan_recipe(recipe: str, workspace: Workspace) -> Plan:
    """The plan of a recipe file or bundled recipe.

    Raises:
        MissingError: no such recipe; or a train recipe's store is not in the workspace, so its widths are not known.
    """
    from workbench.config import find_recipe

    path = find_recipe(recipe)
    values = read_toml(path)
    kind = kind_of(values, str(path))
    if kind == "pretrain":
        from workbench.models.pretrain import PretrainRecipe, build_model, hf_config

        pretraining = parse_config(PretrainRecipe, values, where=str(path))
        return plan_pretraining(pretraining, _meta_parameters(lambda: build_model(hf_config(pretraining, 512))))
    if kind == "harvest":
        from workbench.activations import HarvestRecipe

        harvest = parse_config(HarvestRecipe, values, where=str(path))
        return plan_harvest(harvest, [_source_size(s, harvest) for s in harvest.sources])
    from workbench.activations import ActivationStore
    from workbench.training import TrainRecipe, jobs_of

    training = parse_config(TrainRecipe, values, where=str(path))
    store = ActivationStore.open(workspace.get("stores", training.store).path)
    jobs = jobs_of(training, store)
    width = max(job.config.d_in for job in jobs)
    return plan_training(training, jobs, 8 if jobs[0].config.dtype == "float64" else 4, width * store.spec.itemsize)


def _meta_parameters(build: Any) -> int:
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


def _source_size(source: Any, recipe: HarvestRecipe) -> tuple[int, list[int]]:
    """(parameters, widths of the hooks harvested) of one source. Sites all have the residual stream's width."""
    from workbench.activations.forward import resolve_hooks
    from workbench.models import load_model

    model = load_model(source.model, source.revision)
    own = source.hooks if isinstance(source.hooks, dict) else {}
    wanted = list(recipe.hooks) if own or not source.hooks else list(source.hooks)
    hooks = set(resolve_hooks(model, wanted, own).values())
    return sum(p.numel() for p in model.parameters()), [int(model.cfg.d_model)] * len(hooks)


def machine_named(name: str) -> Machine:
    """A described machine, or ``here`` for this one, measured.

    Raises:
        UsageError: no such machine.
    """
    if name == "here":
        return this_machine()
    if name not in MACHINES:
        raise UsageError(f"machine {name!r} is not described ({nearest(name, ['here', *MACHINES])})")
    return MACHINES[name]


def as_json(plan: Plan, machine: Machine) -> dict[str, Any]:
    """Everything about a plan on a machine, for ``--json``."""
    return plan.on(machine) | {"rates": asdict(machine)}
