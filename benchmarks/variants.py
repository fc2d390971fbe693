"""Every kind of activation at its defaults on real activations: L0, explained variance and dead latents of held-out
rows.

    python benchmarks/variants.py                            # residual streams of mini-pythia, three seeds
    python benchmarks/variants.py --kind l1 --coefficient 0.5 1 2 4

Says whether the defaults of those that pay for sparsity (L1, JumpReLU; :class:`sae.config.Variant`) reach a sensible L0
without collapse on something other than planted directions, and what another coefficient or learning rate would give.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import torch

from sae import SAEConfig, Trainer, evaluate
from sae.config import ActivationConfig
from workbench import load_model
from workbench.corpus import CorpusConfig, plan_tokens
from workbench.models import load_tokenizer
from workbench.models.sites import hooks_of

KINDS = ("topk", "norm-topk", "batchtopk", "matryoshka", "l1", "jumprelu")


@torch.no_grad()
def rows_of(model: str, sites: list[str], n_seq: int, ctx: int = 128) -> dict[str, torch.Tensor]:
    """Raw rows of each site, [n_seq * (ctx - 1), d]; position 0 (BOS) is left out."""
    bridge, tokens = load_model(model), plan_tokens(CorpusConfig(), load_tokenizer(model), n_seq=n_seq, ctx=ctx).tokens
    hooks = {site: hooks_of(site)[0] for site in sites}
    found: dict[str, list[torch.Tensor]] = {site: [] for site in sites}
    for part in torch.from_numpy(tokens).long().split(64):
        _, cache = bridge.run_with_cache(part, names_filter=list(hooks.values()))
        for site, hook in hooks.items():
            found[site].append(cache[hook][:, 1:].flatten(0, 1))
    return {site: torch.cat(parts) for site, parts in found.items()}


def measure(x: torch.Tensor, config: SAEConfig, steps: int, batch: int) -> dict[str, float]:
    """Train on nine tenths of the rows, evaluate on the rest."""
    train, heldout = x[: len(x) * 9 // 10], x[len(x) * 9 // 10 :]
    generator = torch.Generator().manual_seed(config.seed)
    trainer, start = Trainer(config, total_steps=steps), time.perf_counter()
    for _ in range(steps):
        trainer.step(train[torch.randint(len(train), (batch,), generator=generator)])
    spent = (time.perf_counter() - start) / steps
    found = evaluate(trainer.dictionary(), heldout.split(4096))
    return {"l0": found.l0, "ev": found.ev, "dead": found.dead, "ms": spent * 1000, "n": found.n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini-pythia")
    parser.add_argument("--sites", nargs="+", default=["L1R", "L2R"])
    parser.add_argument("--kind", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--penalty", default=None, help="of jumprelu")
    parser.add_argument(
        "--coefficient", nargs="+", type=float, default=[None], help="of l1 or jumprelu, instead of the default"
    )
    parser.add_argument("--threshold-lr", nargs="+", type=float, default=[None])
    parser.add_argument("--lr", nargs="+", type=float, default=[None], help="instead of the default")
    parser.add_argument("--expansion", nargs="+", type=int, default=[8])
    parser.add_argument("--k", nargs="+", type=int, default=[16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--quick", action="store_true", help="one site, one seed, 100 steps")
    args = parser.parse_args()
    if args.quick:
        args.sites, args.seeds, args.steps = args.sites[:1], 1, 100
    rows = rows_of(args.model, args.sites, n_seq=512 if args.quick else 2048)
    n = len(next(iter(rows.values())))
    print(
        f"{args.model}, {args.steps} steps of {args.batch} rows, {n - n * 9 // 10:,} held-out rows, {args.seeds} seeds:"
        " mean (least to most)"
    )
    print(
        f"{'site':5} {'x':>3} {'k':>3} {'kind':10} {'coefficient':>11} {'t-lr':>5} {'lr':>7} {'L0':>22} {'EV':>22}"
        f" {'dead':>20} {'ms/step':>8}"
    )
    grid = itertools.product(
        args.sites, args.expansion, args.k, args.kind, args.coefficient, args.threshold_lr, args.lr
    )
    for site, expansion, k, kind, coefficient, threshold_lr, lr in grid:
        given = {"coefficient": coefficient, "threshold_lr": threshold_lr, "penalty": args.penalty}
        variant = ActivationConfig(kind=kind, **{key: value for key, value in given.items() if value is not None})
        rate = {} if lr is None else {"lr": lr}
        d = rows[site].shape[1]
        found = [
            measure(
                rows[site],
                SAEConfig(d_in=d, d_sae=expansion * d, k=k, activation=variant, seed=s, **rate),
                args.steps,
                args.batch,
            )
            for s in range(args.seeds)
        ]
        cells = [_span([f[key] for f in found], form) for key, form in (("l0", ".1f"), ("ev", ".3f"), ("dead", ".3f"))]
        names = [("" if v is None else f"{v:g}") for v in (coefficient, threshold_lr, lr)]
        print(
            f"{site:5} {expansion:3} {k:3} {kind:10} {names[0]:>11} {names[1]:>5} {names[2]:>7} {cells[0]:>22}"
            f" {cells[1]:>22} {cells[2]:>20} {statistics.median(f['ms'] for f in found):8.1f}",
            flush=True,
        )


def _span(values: list[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()
