"""Tokens a second of a harvest beside a bare forward pass of transformers to the same layer, in the same precision.

    python benchmarks/harvest.py [--model smollm2-135m] [--site L25R] [--dtype float32] [--sequences 64] [--rounds 5]
    python benchmarks/harvest.py --quick                # the bundled miniature

The harvest is what the program does after loading: hooks, rows, shards, digests, synced to the disk. The bare pass is
``AutoModelForCausalLM`` with its default attention, cut behind the same block, on the same batches; what it makes is
thrown away. Both take turns, so that a busy machine slows both; printed are both speeds, wall and processor seconds,
and the ratio of every round with the median. Then what the precision costs: relative error of the activations at the
site against float32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.activations import HarvestRecipe
from workbench.activations.harvesting.forward import ModelProducer, capture
from workbench.activations.harvesting.run import prepare
from workbench.activations.write.fill import fill
from workbench.config import read_recipe
from workbench.models import load_model, site_hooks
from workbench.models.load import load_hf
from workbench.models.sites import parse_site


def bare(name: str, layer: int, dtype: torch.dtype) -> Any:
    """The Hugging Face model cut behind a block, without its unembedding."""
    model = load_hf(name)
    model.set_attn_implementation("sdpa")
    body = model.base_model.to(dtype)
    body.layers = body.layers[: layer + 1]
    body.config.use_cache = False
    return body.eval()


def clock(work: Any) -> tuple[float, float]:
    """(wall, processor) seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Take turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--site", default="L25R")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the bundled miniature, two rounds")
    args = parser.parse_args()
    if args.quick:
        args.model, args.site, args.rounds = "mini-pythia", "L3R", 2
    torch.set_num_threads(args.threads)
    recipe = read_recipe(HarvestRecipe, "real-harvest").model_dump()
    recipe |= {
        "hooks": [args.site],
        "n_seq": args.sequences,
        "model_dtype": args.dtype,
        "sources": [{"model": args.model}],
    }
    made = HarvestRecipe.model_validate(recipe)
    spec, plan, models = prepare(made)
    producer = ModelProducer(spec, plan.tokens, models)
    plain = bare(args.model, parse_site(args.site)[0], getattr(torch, args.dtype))
    batches = torch.from_numpy(plan.tokens.astype(np.int64)).split(made.batch_size)

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                plain(batch, use_cache=False)

    def harvest() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fill(
                Path(folder) / "store",
                spec,
                plan.tokens,
                producer,
                doc_ids=plan.doc_ids,
                kinds=plan.kinds,
                rows=plan.rows,
                command="benchmark",
            )

    forward(), harvest()  # both warm
    taken = [(clock(forward), clock(harvest)) for _ in range(args.rounds)]
    n = plan.tokens.size
    for name, at in (("bare forward pass", 0), ("harvest", 1)):
        wall, processor = (float(np.median([t[at][i] for t in taken])) for i in (0, 1))
        print(f"{name:20} {n / wall:9,.0f} tokens/s   {wall:7.2f} s wall, {processor:7.2f} s processor (medians)")
    for what, i in (("wall", 0), ("processor", 1)):
        ratios = sorted(t[0][i] / t[1][i] for t in taken)
        print(f"harvest / bare by {what:9}: {np.median(ratios):.3f}  ({', '.join(f'{r:.3f}' for r in ratios)})")
    if args.dtype != "float32":
        hook = site_hooks(load_model(args.model), args.site)[1]
        exact = capture(load_model(args.model), batches[0], [hook])[hook][:, 1:].double()
        here = capture(models[spec.sources[0].name], batches[0], [hook])[hook][:, 1:].double()
        error = (here - exact).norm(dim=-1) / exact.norm(dim=-1)
        print(
            f"relative error of {args.dtype} activations at {args.site}: median {error.median():.4f} of"
            f" {error.numel():,} rows"
        )


if __name__ == "__main__":
    main()
