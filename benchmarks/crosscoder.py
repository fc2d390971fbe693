"""What a crosscoder's training step costs, in units of one product (B, sum(D)) x (sum(D), F), and a peer beside it.

``python benchmarks/crosscoder.py`` measures forward, backward, Adam, decoder handling and counters together, in the
same process as the product, alternating, on one thread (medians of CPU time), and counts dense products and the largest
tensor. Beside it the BatchTopK crosscoder of science-of-finetuning on identical weights and rows: the same mean squared
error is asked for (within 1e-5, else exit status 1), and its forward and backward pass with Adam is timed. It is no
dependency of this
project: clone it anywhere outside and name the folder, for this script or for ``make bench``:

    git clone https://github.com/science-of-finetuning/dictionary_learning /path/to/peer
    CROSSCODER_PEER=/path/to/peer make bench        # or: python benchmarks/crosscoder.py --peer /path/to/peer
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from opcount import count_step

from crosscoders import CrosscoderConfig
from sae import Trainer
from sae.backends import pick
from sae.encode import StepPlan

SHAPES = {"small": (1024, 12, 128, 2048, 16), "large": (2048, 16, 128, 8192, 32)}  # B, sources, D of each, F, k
GATES: dict[str, dict[str, Any]] = {
    "topk": {},
    "batchtopk": {"activation": "batchtopk"},
    "l1": {"activation": "l1", "start": {"norm": 0.1}},
    "jumprelu": {"activation": "jumprelu", "start": {"norm": 0.1}},
    "own magnitudes": {"gate": "own-magnitude"},
    "jumprelu per source": {"activation": "jumprelu", "gate": "per-source", "start": {"norm": 0.1}},
}
LIMIT = 1.3
SAME = 1e-5  # of the mean squared errors of both on identical weights and rows


def trainer(shape: tuple[int, ...], gate: str) -> tuple[Trainer, Tensor]:
    """A trainer two steps old, and the rows it trains on: sparse mixtures with noise, so that codes look like codes."""
    b, s, d, f, k = shape
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(f // 4, s * d, generator=g) / d**0.5
    strength = torch.rand(b, f // 4, generator=g) * (torch.rand(b, f // 4, generator=g) < k / (f // 4))
    x = strength @ directions + 0.01 * torch.randn(b, s * d, generator=g)
    t = Trainer(CrosscoderConfig(widths=[d] * s, d_sae=f, k=k, **GATES[gate]))
    for _ in range(2):
        t.step(x)
    return t, x


def ratio(t: Trainer, x: Tensor, repeats: int) -> tuple[float, float]:
    """(median seconds of a step, its ratio to the product's median)."""
    w = torch.randn(t.model.d_sae, x.shape[1])
    out = torch.empty(len(x), t.model.d_sae)
    unit, cost = [], []
    for _ in range(repeats):
        a = time.thread_time()
        torch.mm(x, w.t(), out=out)
        b = time.thread_time()
        t.step(x)
        unit.append(b - a)
        cost.append(time.thread_time() - b)
    return statistics.median(cost), statistics.median(cost) / statistics.median(unit)


def peer_class(folder: str | None) -> Any | None:
    """science-of-finetuning's BatchTopKCrossCoder, or None where it is not installed."""
    if folder:  # the package itself imports language-model tooling that the crosscoder does not need
        package = types.ModuleType("dictionary_learning")
        package.__path__ = [str(Path(folder) / "dictionary_learning")]
        sys.modules["dictionary_learning"] = package
        sys.modules["dictionary_learning.utils"] = tools = types.ModuleType("dictionary_learning.utils")
        tools.set_decoder_norm_to_unit_norm = None  # type: ignore[attr-defined]
    try:
        return getattr(importlib.import_module("dictionary_learning.dictionary"), "BatchTopKCrossCoder", None)
    except ImportError as e:
        print(f"the peer cannot be imported: {e}", file=sys.stderr)
        return None


def against(peer: Any, shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Mean squared errors of both on identical weights and rows, and the peer's step in units of the product."""
    b, s, d, f, k = shape
    t, x = trainer(shape, "batchtopk")
    cc = t.model
    theirs = peer(d, f, s, k=k, target_rms=None)
    with torch.no_grad():
        theirs.encoder.weight.copy_(cc.enc_FD.view(f, s, d).permute(1, 2, 0))
        theirs.decoder.weight.copy_(cc.dec_FD.view(f, s, d).permute(1, 0, 2))
        theirs.encoder.bias.copy_(cc.b_enc - cc.enc_FD @ cc.b_dec)
        theirs.decoder.bias.copy_(cc.b_dec.view(s, d))
    target = x * cc.scale_D
    rows = target.view(b, s, d)
    plan = StepPlan(k, pick("auto", x), cc.activation.selection_weights(cc))
    with torch.no_grad():
        ours = float((cc.reconstruct(target, plan)[0] - target).square().mean())
        other = float((theirs.decode(theirs.encode(rows, use_threshold=False)) - rows).square().mean())
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        (theirs.decode(theirs.encode(rows, use_threshold=False)) - rows).square().mean().backward()
        optimizer.step()

    step()
    return {"ours": ours, "theirs": other, "ratio": _units(step, shape, repeats)}


def _units(f: Callable[[], None], shape: tuple[int, ...], repeats: int) -> float:
    b, s, d, latents, _ = shape
    x, w, out = torch.randn(b, s * d), torch.randn(latents, s * d), torch.empty(b, latents)
    unit, cost = [], []
    for _ in range(repeats):
        a = time.thread_time()
        torch.mm(x, w.t(), out=out)
        c = time.thread_time()
        f()
        unit.append(c - a)
        cost.append(time.thread_time() - c)
    return statistics.median(cost) / statistics.median(unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller shape, Top-K and BatchTopK only, few repeats")
    parser.add_argument(
        "--peer",
        default=os.environ.get("CROSSCODER_PEER"),
        help="a checkout of science-of-finetuning's dictionary_learning (or CROSSCODER_PEER)",
    )
    parser.add_argument("--gates", nargs="*", default=None, choices=list(GATES), help="only these")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    repeats = 7
    for name in ["small"] if args.quick else list(SHAPES):
        b, s, d, f, k = SHAPES[name]
        for gate in args.gates or (list(GATES)[:2] if args.quick else list(GATES)):
            t, x = trainer(SHAPES[name], gate)
            seconds, units = ratio(t, x, repeats)
            dense, _, counter = count_step(t, x)
            row = {
                "shape": name,
                "B": b,
                "sources": s,
                "D": d,
                "F": f,
                "k": k,
                "gate": gate,
                "step / product": round(units, 3),
            }
            row |= {
                "seconds": round(seconds, 4),
                "dense products": round(dense, 3),
                "largest tensor / BF": round(counter.widest / (b * f), 3),
            }
            row["limit"] = LIMIT if gate in ("topk", "batchtopk") else None
            rows.append(row)
    peer = peer_class(args.peer)
    race = None if peer is None else against(peer, SHAPES["small"], repeats)
    if args.json:
        print(json.dumps({"steps": rows, "peer": race}, indent=2))
        sys.exit(0 if _same(race) else 1)
    for row in rows:
        head = f"{row['shape']:>6} B {row['B']} x {row['sources']} sources of {row['D']}, F {row['F']}, k {row['k']}"
        limit = f" (aim <= {row['limit']})" if row["limit"] else ""
        print(
            f"{head}  {row['gate']:>20}: {row['step / product']:.2f} products{limit}, {row['dense products']:.2f}"
            f" counted, largest tensor {row['largest tensor / BF']:.2f} BF"
        )
    if race is None:
        print(
            "science-of-finetuning's crosscoder is not installed: clone"
            " https://github.com/science-of-finetuning/dictionary_learning outside this repository and set"
            " CROSSCODER_PEER to the folder"
        )
    else:
        print(
            f"identical weights and rows: mean squared error {race['ours']:.8f} here, {race['theirs']:.8f} there"
            f" (difference {abs(race['ours'] - race['theirs']):.1e}); their step {race['ratio']:.2f} products"
        )
    sys.exit(0 if _same(race) else f"the two losses on identical weights and rows differ by more than {SAME}")


def _same(race: dict[str, float] | None) -> bool:
    return race is None or abs(race["ours"] - race["theirs"]) <= SAME


if __name__ == "__main__":
    main()
