"""Time of the circuit analyses: 64 prompts of 64 tokens, every layer, head and position, on the bundled models.

    python benchmarks/circuits.py [--threads 2] [--transformer mini-pythia] [--mamba mini-mamba] [--quick]
    python benchmarks/circuits.py --model smollm2-135m [--prompts 64] [--strict]

Prints wall and processor seconds of direct effects (what every head reads from every position, and head to logit), of
total effects (every head's and every layer's output at every position), and of the Mamba's write profile over all
layers and 12 offsets. With ``--model`` it is all that ``workbench circuits`` computes of one model, part by part, with
the largest memory of the process; ``--strict`` exits 1 above five minutes or 8 GiB.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from workbench.analysis.circuits.analyse import analyse
from workbench.analysis.circuits.effects import METRICS
from workbench.analysis.circuits.heads import head_to_logit, read_profile
from workbench.analysis.circuits.off_by_one import write_profile
from workbench.analysis.circuits.patching import Patch, patch_effects
from workbench.analysis.circuits.paths import FrozenPaths
from workbench.analysis.circuits.table import OFFSETS, label_of
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.circuits.tasks import make_prompts, read_task
from workbench.models import load_model
from workbench.run import Bar, Run

SECONDS, GIB = 300.0, 8.0


def timed(label: str, work: Callable[[], object]) -> None:
    """Run and print."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    print(
        f"{label:64} {time.perf_counter() - wall:7.1f} s wall {time.process_time() - processor:7.1f} s processor",
        flush=True,
    )


class Parts(Bar):
    """A progress bar that prints how long each part took."""

    def __init__(self) -> None:
        self.at, self.name = time.perf_counter(), ""

    def part(self, name: str) -> None:
        """The part before has ended."""
        now = time.perf_counter()
        if self.name:
            print(f"{self.name:64} {now - self.at:7.1f} s wall", flush=True)
        self.at, self.name = now, name


def whole(name: str, n: int) -> bool:
    """Whether all of one model stays within time and memory."""
    model, parts = load_model(name), Parts()
    prompts = make_prompts(read_task("induction"), n, vocab_size=model.cfg.d_vocab, tokenizer=model.tokenizer)

    @contextmanager
    def bar(label: str, total: int | None, unit: str) -> Iterator[Parts]:
        yield parts
        parts.part("")

    run = Run(say=lambda line: print(line, flush=True), bar=bar)
    begin = time.perf_counter()
    timed(f"{name}: circuits, {len(prompts)} prompts", lambda: analyse(model, prompts, metrics=METRICS, run=run))
    seconds, gib = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"largest memory {gib:.2f} GiB")
    return seconds <= SECONDS and gib <= GIB


def main() -> int:
    """Time each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--transformer", default="mini-pythia")
    parser.add_argument("--mamba", default="mini-mamba")
    parser.add_argument("--quick", action="store_true", help="8 prompts instead of 64")
    parser.add_argument("--model", default="", help="everything of one model instead")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--strict", action="store_true")
    args = parser.parse_args()
    n = 8 if args.quick else args.prompts
    torch.set_num_threads(args.threads)
    if args.model:
        return int(not whole(args.model, n) and args.strict)

    model = load_model(args.transformer)
    prompts = make_prompts(
        read_task("induction"), n, vocab_size=model.cfg.d_vocab, tokenizer=model.tokenizer, length=64
    )
    everywhere = [str(p) for p in range(64)]
    layers, heads = range(len(model.blocks)), range(model.cfg.n_heads)

    def direct() -> None:
        paths = FrozenPaths(model, Tail(model, prompts.clean))
        head_to_logit(model, prompts, paths)
        read_profile(model, prompts, paths, everywhere)

    timed(f"{args.transformer}: direct effects, {len(layers)} x {len(heads)} heads x 64 positions", direct)
    units: list[tuple[str, int | None]] = [("resid", None), *(("z", h) for h in heads)]
    patches = [Patch(site, layer, at, unit) for site, unit in units for layer in layers for at in everywhere]
    timed(f"{args.transformer}: total effects, {len(patches)} patches", lambda: patch_effects(model, prompts, patches))

    mamba = load_model(args.mamba)
    prompts = make_prompts(
        read_task("induction"), n, vocab_size=mamba.cfg.d_vocab, tokenizer=mamba.tokenizer, length=64
    )
    labels = [label_of("B", o) for o in OFFSETS]
    timed(
        f"{args.mamba}: write profile, {len(mamba.blocks)} layers x {len(labels)} offsets",
        lambda: write_profile(mamba, prompts, FrozenPaths(mamba, Tail(mamba, prompts.clean)), labels),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
