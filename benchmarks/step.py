"""What a full training step costs, in units of the one fp32 encoder product at the same shape.

``python benchmarks/step.py`` measures forward, backward, Adam, decoder normalisation and counters together, in the same
process as ``torch.mm`` at the same shape, alternating, on one thread. Medians of CPU time: ratios stand up to other
work on the machine better than wall time does. The product is PyTorch's own ``mm``; a step below one unit is possible
where oneDNN's product, which the step uses, is the faster library.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sae import TopKConfig, Trainer
from sae.backends.cpu import onednn_linear

SHAPES = {"small": (1024, 256, 4096, 32), "large": (4096, 768, 24576, 32)}
LIMITS = {"small": {"step": 1.4}, "large": {"step": 1.12, "bf16": 0.65}}
DEAD_SHARE, DEAD_LIMIT = 0.3, 1.15


def prepared(shape: tuple[int, int, int, int], dead_share: float = 0.0, **changes: object) -> Callable[[], None]:
    """A step of a trainer that has settled; ``dead_share`` of its latents never fire and count as dead."""
    b, d, f, k = shape
    x = torch.randn(b, d, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(TopKConfig(d_in=d, d_sae=f, k=k, **changes))  # type: ignore[arg-type]
    trainer.step(x)
    dead = torch.arange(int(dead_share * f))
    with torch.no_grad():
        trainer.model.b_enc[dead] -= 100

    def step() -> None:
        trainer.since_F[dead] = trainer.config.dead_after + 1
        trainer.step(x)

    step()
    return step


def measured(shape: tuple[int, int, int, int], f: Callable[[], None], repeats: int) -> tuple[float, float, float]:
    """(median seconds of the product, median seconds of ``f``, ratio of the two medians), alternating."""
    x, w = torch.randn(shape[0], shape[1]), torch.randn(shape[2], shape[1])
    out = torch.empty(shape[0], shape[2])
    torch.mm(x, w.t(), out=out)
    unit, cost = [], []
    for _ in range(repeats):
        a = time.thread_time()
        torch.mm(x, w.t(), out=out)
        b = time.thread_time()
        f()
        unit.append(b - a)
        cost.append(time.thread_time() - b)
    return statistics.median(unit), statistics.median(cost), statistics.median(cost) / statistics.median(unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller shape only")
    parser.add_argument("--repeats", type=int, help="measurements per row (default 41 small, 5 large)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bf16 = "avx512_bf16" in Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else False
    results = []
    for name in ["small"] if args.quick else list(SHAPES):
        shape, repeats = SHAPES[name], args.repeats or (41 if name == "small" else 5)
        rows: list[tuple[str, dict[str, object]]] = [
            ("step", {}),
            ("30% dead, k_aux = k", {"dead_share": DEAD_SHARE}),
            ("30% dead, k_aux = 4k", {"dead_share": DEAD_SHARE, "k_aux": 4 * shape[3]}),
            ("30% dead, every row", {"dead_share": DEAD_SHARE, "aux_every": 1}),
            ("bf16", {"bf16_preselect": True}),
        ]
        base = 0.0
        for label, changes in rows:
            unit, cost, ratio = measured(shape, prepared(shape, **changes), repeats)  # type: ignore[arg-type]
            base = base or ratio
            limit = LIMITS[name].get(label) if label != "30% dead, k_aux = k" else DEAD_LIMIT * base
            results.append(
                {
                    "shape": shape,
                    "row": label,
                    "unit_ms": unit * 1e3,
                    "step_ms": cost * 1e3,
                    "units": ratio,
                    "of_step": ratio / base,
                    "limit_units": limit,
                }
            )
            if not args.json:
                verdict = "" if limit is None else f"limit {limit:.2f}: {'kept' if ratio <= limit else 'MISSED'}"
                print(
                    f"{shape!s:24} {label:22} unit {unit * 1e3:8.1f} ms  step {cost * 1e3:8.1f} ms = {ratio:5.2f}"
                    f" units, {ratio / base:4.2f} x step  {verdict}",
                    flush=True,
                )
    about = {"onednn": onednn_linear(), "bf16_instructions": bf16, "threads": 1, "torch": torch.__version__}
    print(json.dumps({"about": about, "results": results}, indent=2) if args.json else f"{about}")


if __name__ == "__main__":
    main()
