"""Training steps on a device: how long they take in each arithmetic, in what units, and whether they are the CPU's.

Timing waits for the device. The unit is the dense encoder product at the same shape and precision, which no exact Top-K
step avoids; its rate says how much of the device's own speed is reached. Each arithmetic is also trained for a while on
small made rows, beside plain PyTorch on the CPU in float32: the first line, float32 on the device itself, is the null.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sae import TopKConfig, Trainer
from sae.devices import abilities, check_device, float32_products
from sae.errors import ConfigError, UsageError
from workbench.planning.calibrate import machine_named
from workbench.planning.machine import machines
from workbench.run import NO_BAR, Bar, long_step

WARM = 3  # steps that are not timed: compilation and caches
PARITY = (64, 48, 256, 8)  # rows, width, latents, k of the steps taken on both devices
PARITY_STEPS = 5
EV_STEPS, EV_SEEDS, EV_HELD_OUT = 150, 3, 4096  # steps, runs, and rows of the explained variance that is compared
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "tf32": {"products": "tf32"},
    "bf16": {"products": "bf16"},
    "bf16 candidates": {"bf16_preselect": True},
    "compiled": {"compiled": True},
    "bf16, compiled": {"products": "bf16", "compiled": True},
}


@dataclass(frozen=True)
class Measured:
    """A training step in one arithmetic. Seconds are medians."""

    seconds_per_step: float
    rows_per_second: float
    products: float  # a step in units of the dense encoder product in this arithmetic
    flops: float  # of that product, per second
    share_of_peak: float | None  # of the rate in data/machines, where this device is described there
    parity: float  # see :func:`parity`
    ev_change: tuple[float, ...]  # see :func:`ev_changes`


@dataclass(frozen=True)
class Way:
    """One arithmetic: what was measured of it, or why it was not."""

    name: str
    settings: dict[str, Any]
    measured: Measured | None
    refused: str = ""


@dataclass(frozen=True)
class Bench:
    """What was measured on a device."""

    device: str
    name: str
    abilities: dict[str, bool]
    backend: str
    rows: int
    d_in: int
    d_sae: int
    k: int
    ways: tuple[Way, ...]


def bench(
    device: str = "cpu",
    *,
    rows: int = 4096,
    d_in: int = 768,
    d_sae: int = 24576,
    k: int = 32,
    repeats: int = 10,
    ways: tuple[str, ...] = tuple(WAYS),
) -> Bench:
    """Measure a Top-K training step on random rows, forward, backward, AuxK, Adam and normalisation together.

    Args:
        ways: names of :data:`WAYS`. What the device, or this machine, has not is in the answer with the reason.

    Raises:
        MissingError: there is no such device here. UsageError: a number that is not positive, k above d_sae, or a way
            that has no such name.
    """
    if min(rows, d_in, d_sae, k, repeats) < 1 or k > d_sae:
        raise UsageError(
            f"rows {rows}, d_in {d_in}, d_sae {d_sae}, k {k}, repeats {repeats}: each at least 1, k ≤ d_sae."
        )
    if unknown := set(ways) - set(WAYS):
        raise UsageError(f"there is no arithmetic called {', '.join(sorted(unknown))}; choose of {', '.join(WAYS)}.")
    check_device(device, "--device")
    x = torch.randn(rows, d_in, generator=torch.Generator().manual_seed(0)).to(device)
    sizes = {"d_in": d_in, "d_sae": d_sae, "k": k}
    with long_step("bench", len(ways) * (2 * (repeats + WARM) + 1 + EV_SEEDS)) as shown:
        measured = tuple(_measured(name, x, sizes, device, repeats, shown) for name in ways)
    return Bench(
        device=device,
        name=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        abilities=asdict(abilities(device)),
        backend=Trainer(TopKConfig(d_in=2, d_sae=2, k=1), device=device).backend.name,
        rows=rows,
        **sizes,
        ways=measured,
    )


def _measured(name: str, x: Tensor, sizes: dict[str, int], device: str, repeats: int, shown: Bar) -> Way:
    settings = WAYS[name]
    try:
        trainer = Trainer(TopKConfig(**sizes, **settings), device=device)
    except ConfigError as e:
        shown.update(2 * (repeats + WARM) + 1 + EV_SEEDS)
        return Way(name, settings, None, refused=str(e))
    seconds = _median(lambda: trainer.step(x), device, repeats, shown)
    weight, bias = trainer.model.enc_FD.detach(), trainer.model.b_enc.detach()
    if "bf16_preselect" in settings:
        factors, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    else:
        factors = x
    with float32_products(trainer.config.products, x.device.type):
        product = _median(lambda: trainer.backend.linear(factors, weight, bias), device, repeats, shown)
    flops = 2 * x.numel() * sizes["d_sae"] / product
    peak = _described(device, settings)
    distance = parity(device, **settings)
    shown.update()
    measured = Measured(
        seconds_per_step=seconds,
        rows_per_second=len(x) / seconds,
        products=seconds / product,
        flops=flops,
        share_of_peak=flops / peak if peak else None,
        parity=distance,
        ev_change=ev_changes(device, shown=shown, **settings),
    )
    return Way(name, settings, measured)


def parity(device: str, **settings: Any) -> float:
    """How far apart decoders end that were trained on ``device`` and, by plain PyTorch, on the CPU in float32 (the same
    seed, the same rows, AuxK included), over how far they went: a ratio of Frobenius norms.
    """
    rows, d, f, k = PARITY
    trainers = [
        Trainer(TopKConfig(d_in=d, d_sae=f, k=k, aux_every=2, **own), device=place)
        for place, own in ((device, settings), ("cpu", {"backend": "fallback"}))
    ]
    for seed in range(PARITY_STEPS):
        x = torch.randn(rows, d, generator=torch.Generator().manual_seed(seed))
        for trainer in trainers:
            trainer.step(x)
        if not seed:
            start = trainers[1].model.dec_FD.detach().double().clone()
    here, cpu = (t.model.dec_FD.detach().cpu().double() for t in trainers)
    return float((here - cpu).norm() / (cpu - start).norm())


def ev_changes(device: str, *, shown: Bar = NO_BAR, **settings: Any) -> tuple[float, ...]:
    """What ``settings`` on ``device`` change of explained variance on held-out rows after :data:`EV_STEPS` steps,
    against plain PyTorch on the CPU in float32: one difference for each of :data:`EV_SEEDS` pairs of runs.

    The rows are made: each a few of 128 directions in 48 dimensions, and noise.
    """
    found = []
    for seed in range(EV_SEEDS):
        found.append(_ev(seed, device, settings) - _ev(seed, "cpu", {"backend": "fallback"}))
        shown.update()
    return tuple(found)


def _ev(seed: int, device: str, settings: dict[str, Any]) -> float:
    from sae.metrics import evaluate

    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(128, 48, generator=generator)

    def made(n: int) -> Tensor:
        on = torch.rand(n, 128, generator=generator) < 0.05
        codes = on * torch.rand(n, 128, generator=generator)
        return codes @ directions + 0.05 * torch.randn(n, 48, generator=generator)

    config = TopKConfig(d_in=48, d_sae=256, k=8, lr=3e-3, seed=seed, **settings)
    trainer = Trainer(config, total_steps=EV_STEPS, device=device)
    for _ in range(EV_STEPS):
        trainer.step(made(256))
    return float(evaluate(trainer.dictionary(), [made(EV_HELD_OUT).to(device)]).ev)


def _median(work: Callable[[], object], device: str, repeats: int, shown: Bar) -> float:
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.split(":")[0], lambda: None)
    took = []
    for i in range(repeats + WARM):
        start = time.perf_counter()
        work()
        wait()
        if i >= WARM:
            took.append(time.perf_counter() - start)
        shown.update()
    return statistics.median(took)


def _described(device: str, settings: dict[str, Any]) -> float | None:
    """FLOP/s, in the precision of the encoder's product, of the described machine whose name stands in this device's.

    Machines are described in float32 and bfloat16, not in TF32.
    """
    if not device.startswith("cuda") or settings.get("products") == "tf32":
        return None
    name = torch.cuda.get_device_name(device).lower()
    known = [key for key in machines() if key.lower() in name]
    if not known:
        return None
    machine = machine_named(known[0])
    return machine.bfloat16 if settings.get("products") == "bf16" or "bf16_preselect" in settings else machine.float32
