"""Side by side with SAELens, sparsify and dictionary_learning: cost of a training step, and error on the same activations.

    python benchmarks/race.py --peers-python /path/to/venv/bin/python

The peers are no dependency of this project: install them in an environment of their own (``pip install sae-lens
eai-sparsify dictionary-learning``) and name its interpreter; everything, ours included, then runs in one process there.
Each library takes its own whole step, optimiser and bookkeeping included, on one thread. For quality all see the same rows
in the same order, scaled alike, with the same k, Adam, warm-up and decay; every library gets its best learning rate of the same grid
(``--default-rate`` adds a row of ours at its default rate). A latent is dead that fires on none of the training rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
ROWS = REPOSITORY / "tests/sae/golden/mini_pythia_rows.safetensors"
RATES = (3e-3, 1e-2, 3e-2)
Runner = tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]  # (step(x), reconstruct(x), dense latents(x))


def ours(d: int, f: int, k: int, lr: float | None, steps: int, seed: int, first: Any) -> Runner:
    from sae import TopKConfig, Trainer

    trainer = Trainer(TopKConfig(d_in=d, d_sae=f, k=k, lr=lr, warmup_steps=steps // 10, seed=seed), total_steps=steps)
    return trainer.step, lambda x: trainer.dictionary()(x), lambda x: trainer.dictionary().encode(x)


def saelens(d: int, f: int, k: int, lr: float, steps: int, seed: int, first: Any) -> Runner:
    import torch
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    model = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=f, k=k))
    model.b_dec.data = first.mean(0)
    config = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=steps * len(first), device="cpu",
        autocast=False, lr=lr, lr_end=lr / 1000, lr_scheduler_name="constant", lr_warm_up_steps=steps // 10, adam_beta1=0.9, adam_beta2=0.999,
        lr_decay_steps=steps // 5, n_restart_cycles=1, train_batch_size_samples=len(first), dead_feature_window=1000,
        feature_sampling_window=2000, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(config, model, data_provider=iter(()))

    def step(x: Any) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return step, model, model.encode


def sparsify(d: int, f: int, k: int, lr: float, steps: int, seed: int, first: Any) -> Runner:
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # on the CPU its Triton decoder cannot run
    import torch
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(seed)
    model = SparseCoder(d, SparseCoderConfig(num_latents=f, k=k))
    model.b_dec.data = first.mean(0)
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda s: min(1.0, (s + 1) / (steps / 10), max(0.0, (steps - s) / (steps / 5))))
    since = torch.zeros(f, dtype=torch.long)

    def step(x: Any) -> None:  # as its trainer does for optimizer="adam", auxk_alpha=1/32
        model.set_decoder_norm_to_unit_norm()
        out = model(x, dead_mask=since > 10_000_000)
        (out.fvu + out.auxk_loss / 32).backward()
        model.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        rate.step()
        fired = torch.zeros(f, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        since.add_(len(x))
        since[fired] = 0

    def latents(x: Any) -> Any:
        out = model(x)
        return torch.zeros(len(x), f).scatter(1, out.latent_indices, out.latent_acts)

    return step, lambda x: model(x).sae_out, latents


def dictionary_learning(d: int, f: int, k: int, lr: float, steps: int, seed: int, first: Any) -> Runner:
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(steps, d, f, k, layer=0, lm_name="rows", lr=lr, warmup_steps=steps // 10, decay_start=steps * 4 // 5, seed=seed, device="cpu")  # fmt: skip
    counter = iter(range(10**9))
    return lambda x: trainer.update(next(counter), x), trainer.ae, trainer.ae.encode


LIBRARIES: dict[str, Callable[..., Runner]] = {"workbench": ours, "sparsify": sparsify, "dictionary_learning": dictionary_learning, "SAELens": saelens}  # fmt: skip


def cost(shape: tuple[int, int, int, int], repeats: int, libraries: list[str]) -> Iterator[dict[str, Any]]:
    """CPU time of a step of each library, all taking turns with the product that is the unit."""
    import torch

    b, d, f, k = shape
    x = torch.randn(b, d, generator=torch.Generator().manual_seed(0))
    w = torch.randn(f, d, generator=torch.Generator().manual_seed(1))
    for name in libraries:
        step, _, _ = LIBRARIES[name](d, f, k, 1e-3, 10_000, 0, x)
        unit, spent = [], []
        for i in range(repeats + 2):
            begin = time.thread_time()
            x @ w.t()
            middle = time.thread_time()
            step(x)
            end = time.thread_time()
            if i >= 2:
                unit.append(middle - begin)
                spent.append(end - middle)
        u, s = statistics.median(unit), statistics.median(spent)
        yield {"library": name, "step_ms": s * 1e3, "unit_ms": u * 1e3, "units": s / u}


def quality(seeds: int, steps: int, k: int, expansion: int, libraries: list[str], default_rate: bool) -> Iterator[dict[str, Any]]:
    """Centred FVU on held-out rows and share of dead latents, each library at its best learning rate of the grid, per seed."""
    import torch

    from sae.folder import read_tensors
    from sae.metrics import fvu

    rows = read_tensors(ROWS)["rows"].float()
    rows *= rows.shape[1] ** 0.5 / rows.norm(dim=1).mean()
    train, held_out, d = rows[:5120], rows[5120:], rows.shape[1]
    runs = [(name, RATES) for name in libraries] + ([("workbench", (None,))] if default_rate else [])
    for name, rates in runs:
        make = LIBRARIES[name]
        table: dict[float | None, list[float]] = {lr: [] for lr in rates}
        dead: dict[float | None, list[float]] = {lr: [] for lr in rates}
        for lr in rates:
            for seed in range(seeds):
                order = torch.Generator().manual_seed(100 + seed)
                batches = (train[torch.randperm(len(train), generator=order)[:512]] for _ in range(steps))
                first = next(batches)
                step, reconstruct, latents = make(d, expansion * d, k, lr, steps, seed, first)
                step(first)
                for x in batches:
                    step(x)
                with torch.no_grad():
                    table[lr].append(float(fvu(held_out, reconstruct(held_out))))
                    dead[lr].append(1 - float((latents(train) > 0).any(0).float().mean()))
        best = min(table, key=lambda lr: statistics.mean(table[lr]))
        values = table[best]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        yield {"library": name, "lr": best, "fvu": statistics.mean(values), "half_interval": 4.30 * spread / len(values) ** 0.5, "dead": statistics.mean(dead[best]), "seeds": seeds, "all": {str(lr): v for lr, v in table.items()}}  # fmt: skip


def here(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    shape = (1024, 256, 4096, 32)
    results: dict[str, Any] = {"torch": torch.__version__, "shape": shape, "cost": [], "quality": []}
    print(f"full training step at (B, D, F, k) = {shape}, one thread, torch {torch.__version__}, no dead latents", file=sys.stderr)
    libraries = args.only or list(LIBRARIES)
    for row in cost(shape, 5 if args.quick else 15, libraries):
        results["cost"].append(row)
        print(f"{row['library']:22} {row['step_ms']:8.1f} ms = {row['units']:5.2f} encoder products", file=sys.stderr, flush=True)
    seeds, steps = (1, 100) if args.quick else (3, 300)
    print(f"held-out FVU after {steps} steps of 512 rows, k = 16, 8x, {seeds} seeds (t interval), best of lr {RATES}", file=sys.stderr)
    for row in quality(seeds, steps, 16, 8, libraries, args.default_rate):
        results["quality"].append(row)
        print(
            f"{row['library']:22} FVU {row['fvu']:.4f} ± {row['half_interval']:.4f}  dead {row['dead']:.1%}  (lr {row['lr'] or 'default'})",
            file=sys.stderr,
            flush=True,
        )
    if args.json:
        print(json.dumps(results, indent=2))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peers-python", default=os.environ.get("PEERS_PYTHON"), help="interpreter with the three libraries (or PEERS_PYTHON)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats, one seed")
    parser.add_argument("--only", nargs="+", choices=list(LIBRARIES), help="these libraries only")
    parser.add_argument("--default-rate", action="store_true", help="a further row: ours at its default learning rate")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        here(args)
        return 0
    if not args.peers_python:
        print(
            "no peers to race against: install sae-lens, eai-sparsify and dictionary-learning in an environment of their own and pass --peers-python"
        )
        return 0
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    flags = [f"--{name}" for name in ("quick", "json", "default_rate") if getattr(args, name)]
    flags = [f.replace("_", "-") for f in flags] + (["--only", *args.only] if args.only else [])
    return subprocess.call([args.peers_python, __file__, "--here", *flags], env=env)


if __name__ == "__main__":
    sys.exit(main())
