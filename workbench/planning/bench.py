"""One training step on a device: how long it takes, in what units, and whether it is the step the CPU takes.

Timing waits for the device. The unit is the dense encoder product at the same shape and precision, which no exact Top-K
step avoids; its rate says how much of the device's own speed is reached.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sae import TopKConfig, Trainer
from sae.errors import MissingError, UsageError
from workbench.planning.calibrate import machine_named
from workbench.planning.machine import machines

PARITY = (64, 48, 256, 8)  # rows, width, latents, k of the steps taken on both devices
PARITY_STEPS = 5


@dataclass(frozen=True)
class Bench:
    """What was measured. Seconds are medians."""

    device: str
    name: str
    backend: str
    rows: int
    d_in: int
    d_sae: int
    k: int
    dtype: str
    seconds_per_step: float
    rows_per_second: float
    products: float  # a step in units of the dense encoder product
    flops: float  # of that product, per second
    share_of_peak: float | None  # of the rate in data/machines, where this device is described there
    parity: float  # see :func:`parity`
    tf32: bool  # whether float32 products may be rounded to TF32


def bench(
    device: str = "cpu",
    *,
    rows: int = 4096,
    d_in: int = 768,
    d_sae: int = 24576,
    k: int = 32,
    repeats: int = 10,
    preselect: bool = False,
) -> Bench:
    """Measure a Top-K training step on random rows, forward, backward, AuxK, Adam and normalisation together.

    Args:
        preselect: candidates are found in bfloat16 and computed again in float32 (``bf16_preselect``).

    Raises:
        MissingError: there is no such device here. UsageError: a number that is not positive, or k above d_sae.
    """
    if min(rows, d_in, d_sae, k, repeats) < 1 or k > d_sae:
        raise UsageError(
            f"rows {rows}, d_in {d_in}, d_sae {d_sae}, k {k}, repeats {repeats}: each at least 1, k ≤ d_sae."
        )
    _check(device)
    config = TopKConfig(d_in=d_in, d_sae=d_sae, k=k, bf16_preselect=preselect)
    trainer = Trainer(config, device=device)
    x = torch.randn(rows, d_in, generator=torch.Generator().manual_seed(0)).to(device)
    weight = trainer.model.enc_FD.detach().to(x)
    seconds = _median(lambda: trainer.step(x), device, repeats)
    product = _median(lambda: x @ weight.t(), device, repeats)
    flops = 2 * rows * d_in * d_sae / product
    peak = _described(device)
    return Bench(
        device=device,
        name=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        backend=trainer.backend.name,
        rows=rows,
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        dtype="float32, candidates in bfloat16" if preselect else "float32",
        seconds_per_step=seconds,
        rows_per_second=rows / seconds,
        products=seconds / product,
        flops=flops,
        share_of_peak=flops / peak if peak else None,
        parity=parity(device),
        tf32=torch.backends.cuda.matmul.allow_tf32,
    )


def _check(device: str) -> None:
    kind = device.split(":")[0]
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in here:
        raise UsageError(f"--device {device}: cpu, cuda, cuda:N or mps.")
    if not here[kind]:
        raise MissingError(f"--device {device}: this PyTorch ({torch.__version__}) sees no such device here.")


def parity(device: str) -> float:
    """How far apart decoders end that were trained on ``device`` and, by plain PyTorch, on the CPU (the same seed, the
    same rows, AuxK included), over how far they went: a ratio of Frobenius norms.
    """
    rows, d, f, k = PARITY
    trainers = [
        Trainer(TopKConfig(d_in=d, d_sae=f, k=k, aux_every=2, backend=backend), device=place)
        for place, backend in ((device, "auto"), ("cpu", "fallback"))
    ]
    for seed in range(PARITY_STEPS):
        x = torch.randn(rows, d, generator=torch.Generator().manual_seed(seed))
        for trainer in trainers:
            trainer.step(x)
        if not seed:
            start = trainers[1].model.dec_FD.detach().double().clone()
    here, cpu = (t.model.dec_FD.detach().cpu().double() for t in trainers)
    return float((here - cpu).norm() / (cpu - start).norm())


def _median(work: Callable[[], object], device: str, repeats: int) -> float:
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.split(":")[0], lambda: None)
    took = []
    for i in range(repeats + 3):  # three for compilation and caches
        start = time.perf_counter()
        work()
        wait()
        if i >= 3:
            took.append(time.perf_counter() - start)
    return statistics.median(took)


def _described(device: str) -> float | None:
    """float32 FLOP/s of the described machine whose name stands in this device's."""
    if not device.startswith("cuda"):
        return None
    name = torch.cuda.get_device_name(device).lower()
    known = [key for key in machines() if key.lower() in name]
    return machine_named(known[0]).float32 if known else None
