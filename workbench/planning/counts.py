"""The amounts of each kind of work: what a harvest, a training run and a pre-training do, counted, per device.

Shapes: rows b of a device per step, width D of a row, latents f of a device, kept entries k per row over all devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.planning.cost import ONE, Layout, Part, Plan

if TYPE_CHECKING:
    from workbench.models.facts import ModelFacts

FLOAT = 4
SIZES = {"bfloat16": 2, "float16": 2, "float32": FLOAT, "float64": 8}  # bytes of a number
CHECKPOINTS = 10  # a run writes ten checkpoints and keeps two


def stored_bytes(rows: int, row_bytes: int, tokens: int) -> int:
    """Bytes of an activation store: rows with token id, sequence, position and flags, and the token plan."""
    return rows * (row_bytes + 4 + 8 + 4 + 1) + 4 * tokens


@dataclass(frozen=True)
class Dictionary:
    """One dictionary to be trained: what its cost depends on."""

    d_in: int
    d_sae: int
    k: int
    dtype_bytes: int = FLOAT
    dense: bool = False  # L1 and JumpReLU crosscoders: gradients of shape (B, F)
    tile_rows: int = 1024

    @property
    def parameters(self) -> int:
        """Weights and biases, untied."""
        return 2 * self.d_in * self.d_sae + self.d_in + self.d_sae


@dataclass(frozen=True)
class Reading:
    """Where rows come from: bytes read from disk per row, or models run for them; held-out and counted rows that are
    measured after.
    """

    row_bytes: int = 0
    buffer_bytes: float = 0.0
    model: tuple[ModelFacts, int, int] | None = None  # facts, context, blocks run in all
    models: int = 1  # of these, loaded at once
    at_once: int = 1  # sequences they run on at once
    compute: str = "float32"
    measured_rows: int = 0


def plan_training(
    dictionaries: Sequence[Dictionary],
    *,
    steps: int,
    batch_size: int,
    reading: Reading,
    passes: int = 1,
    layout: Layout = ONE,
    checkpoints: int = CHECKPOINTS,
    kind: str = "train",
) -> Plan:
    """Training of dictionaries, ``passes`` of them reading rows of their own: per device, and in turn where there are
    fewer groups.

    Data-parallel devices sum gradients (ring: 2 (n-1)/n of them sent); devices that share a dictionary exchange k
    candidate scores per row and sum partial reconstructions.
    """
    b = batch_size / layout.data
    rounds = math.ceil(len(dictionaries) / layout.jobs)
    share = rounds / len(dictionaries) * steps  # of every dictionary's steps, what falls to one device
    total: dict[str, dict[str, float]] = {}

    def add(part: str, resource: str, amount: float) -> None:
        of = total.setdefault(part, {})
        of[resource] = of.get(resource, 0.0) + amount * share

    sent_latents = sent_data = 0.0
    for one in dictionaries:
        f, d, size = one.d_sae / layout.latents, one.d_in, one.dtype_bytes
        kept, own = b * one.k / layout.latents, one.parameters / layout.latents
        if one.dense:
            add(
                "dense products", "float32", 6 * 2.0 * b * d * f
            )  # forward, backward, and forward once more (recomputed)
            add("gates and penalty", "stream", 12.0 * b * f * size)
        else:
            add("encoder product", "float32", 2.0 * b * d * f)
            add("selection", "select", b * f)
            add("decoder", "decode", kept * d * size)
            add("gradients of kept entries", "dots", kept * d * size)
            add("weight gradients", "scatter", 2 * (kept * d + f * d) * size)
            add("grouping by latent", "sort", kept)
        add("rows in and out", "stream", 12.0 * b * d * size)
        add("Adam", "adam", 7.0 * own * size)
        add("calls", "steps", 1.0)
        sent_latents += (layout.latents - 1) * (b * min(one.k, f) * size) + 2 * (
            layout.latents - 1
        ) / layout.latents * b * d * size
        sent_data += 2 * (layout.data - 1) / layout.data * own * size
    parts = [Part(name, amounts) for name, amounts in total.items()]
    if layout.latents > 1:
        parts.append(
            Part(
                "candidates and partial sums",
                sent=sent_latents * share,
                collectives=3 * share * len(dictionaries),
                group=layout.latents,
            )
        )
    if layout.data > 1:
        group = layout.latents * layout.data
        parts.append(
            Part("sum of gradients", sent=sent_data * share, collectives=4 * share * len(dictionaries), group=group)
        )
    my_passes = math.ceil(passes / layout.jobs)
    parts += _reading(reading, my_passes * steps * b, b)
    largest = max(dictionaries, key=lambda o: o.parameters * o.dtype_bytes)
    own = largest.parameters / layout.latents * largest.dtype_bytes
    saved = sum(o.parameters * o.dtype_bytes for o in dictionaries)
    if checkpoints:
        written = (3 * checkpoints + 1) * saved * rounds / len(dictionaries)
        group = layout.data * layout.latents
        parts.append(Part("checkpoints", {"disk_save": written}, one_of=group))
        parts.append(Part("making them durable", {"commits": (checkpoints + 1.0) * rounds}, one_of=group))
    if reading.measured_rows:
        n, mine = reading.measured_rows, rounds / len(dictionaries)
        parts.append(
            Part("measuring: product", {"float32": sum(2.0 * o.d_in * o.d_sae for o in dictionaries) * n * mine})
        )
        parts.append(Part("measuring: selection", {"select": sum(float(o.d_sae) for o in dictionaries) * n * mine}))
        parts.append(
            Part(
                "measuring: decoder",
                {"decode": sum(float(o.k * o.d_in * o.dtype_bytes) for o in dictionaries) * n * mine},
            )
        )
        parts.append(
            Part("measuring: sums", {"stream": sum(10.0 * o.d_in * 8 for o in dictionaries) * n * mine})
        )  # in float64
        parts.append(Part("measuring: reading rows", {"disk_read": float(reading.row_bytes) * n * rounds}))
    trained = sum(2.0 * o.d_in * o.d_sae * (6 if o.dense else 1) for o in dictionaries) * steps * batch_size
    forward = passes * steps * batch_size * _per_row(reading)
    return Plan(
        kind,
        {
            "dictionaries": len(dictionaries),
            "passes": passes,
            "tokens": steps * batch_size,
            "steps": steps,
            "parameters": largest.parameters,
            "flops": trained + forward,
        },
        disk_bytes=saved,
        memory=_training_memory(largest, own, b, layout, reading, checkpoints),
        unit=_unit(reading),
        host={
            "row buffers": reading.buffer_bytes,
            "checkpoint as bytes": 6.0 * own * layout.latents if checkpoints else 0.0,
        },
        parts=parts,
        layout=layout,
        sent_per_step=sum(p.sent for p in parts) / (steps * rounds),
    )


def _per_row(reading: Reading) -> float:
    if reading.model is None:
        return 0.0
    facts, ctx, blocks = reading.model
    return facts.forward_flops(ctx, blocks)


def _unit(reading: Reading) -> float:
    """Bytes of one number for every token and unit of width that a model runs on at once (see
    :class:`workbench.planning.cost.Plan`).
    """
    if reading.model is None:
        return 0.0
    facts, ctx, _ = reading.model
    return float(reading.at_once * ctx * facts.d_model * SIZES[reading.compute])


def _reading(reading: Reading, rows: float, b: float) -> list[Part]:
    """Rows from the store, or from a model that runs for them."""
    if reading.model is not None:
        return [
            Part(
                "forward passes",
                {"forward" if reading.compute == "float32" else reading.compute: rows * _per_row(reading)},
            )
        ]
    return [Part("reading rows", {"disk_read": rows * reading.row_bytes, "stream": 3.0 * rows * reading.row_bytes})]


def _training_memory(
    o: Dictionary, own: float, b: float, layout: Layout, reading: Reading, checkpoints: int
) -> dict[str, float]:
    """Items of the peak: it comes when a checkpoint is written (weights and moments once more), or in the backward
    pass.
    """
    f = o.d_sae / layout.latents
    tile = min(b, o.tile_rows) * f * o.dtype_bytes
    rows = (3 * tile) if not o.dense else 6.0 * b * f * o.dtype_bytes
    items = {
        "weights": own,
        "gradients": own,
        "Adam moments": 2 * own,
        "activations": rows + 6.0 * b * o.d_in * o.dtype_bytes + 3.0 * b * o.k * 16,
    }
    if checkpoints and layout.latents > 1:
        items["checkpoint put together"] = 3 * own * layout.latents  # every process holds the whole state for a moment
    if reading.model is not None:
        facts, _, _ = reading.model
        items["language models"] = float(reading.models * facts.resident * SIZES[reading.compute])
    return items


@dataclass(frozen=True)
class Run:
    """One model of a harvest: its facts, the blocks run, and the widths of the streams kept."""

    facts: ModelFacts
    blocks: int
    widths: tuple[int, ...]


def plan_harvest(
    runs: Sequence[Run],
    *,
    n_seq: int,
    ctx: int,
    rows_per_seq: int,
    itemsize: int,
    seqs_per_shard: int,
    batch_size: int,
    compute: str = "float32",
    workers: int = 1,
) -> Plan:
    """Harvesting: every model on every token as far as its last hook; workers share shards and nothing else, each loads
    all models.
    """
    rows, tokens = n_seq * rows_per_seq, n_seq * ctx
    row_bytes = sum(sum(r.widths) for r in runs) * itemsize
    stored = stored_bytes(rows, row_bytes, tokens)
    flops = sum(r.facts.forward_flops(ctx, r.blocks) for r in runs) * tokens
    shards, shard = -(-n_seq // seqs_per_shard), seqs_per_shard * rows_per_seq * row_bytes
    width = max(r.facts.d_model for r in runs)
    weights = SIZES[compute]
    return Plan(
        "harvest",
        {"sources": len(runs), "tokens": tokens, "rows": rows, "shards": shards, "flops": flops},
        disk_bytes=stored,
        memory={
            "language models": float(sum(r.facts.resident for r in runs) * weights),
            "rows of a batch": float(batch_size * ctx * sum(sum(r.widths) for r in runs) * (weights + itemsize)),
        },
        unit=float(batch_size * ctx * width * weights),
        host={"a shard being written": float(min(shard, 2**26)), "token plan": 4.0 * tokens},
        parts=[
            Part("loading models", {"loads": float(len(runs))}),
            Part("forward passes", {"forward" if compute == "float32" else compute: flops / workers}),
            Part("writing shards", {"disk_write": stored / workers}),
            Part("making them durable", {"shards": (shards + 1.0) / workers}),  # and the token plan
        ],
        layout=Layout(jobs=workers),
    )


def plan_pretraining(*, tokens: int, steps: int, parameters: int, snapshots: int, activations: float) -> Plan:
    """Pre-training a miniature model: six FLOP per parameter and token, a snapshot in half precision per saved step."""
    return Plan(
        "pretrain",
        {
            "tokens": tokens,
            "steps": steps,
            "parameters": parameters,
            "snapshots": snapshots,
            "flops": 6.0 * parameters * tokens,
        },
        disk_bytes=snapshots * parameters * 2,
        memory={
            "weights": 4.0 * parameters,
            "gradients": 4.0 * parameters,
            "moments": 8.0 * parameters,
            "activations": activations,
        },
        parts=[
            Part("forward and backward", {"float32": 6.0 * parameters * tokens}),
            Part("AdamW", {"adam": 28.0 * parameters * steps}),
        ],
    )
