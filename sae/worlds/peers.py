"""Other libraries on the same worlds, each in an environment of its own: ``python -m sae.worlds.peers JOB``.

JOB is a JSON object: ``library``, ``kind``, ``lr``, ``seed`` and ``budget`` (:class:`sae.worlds.benchmark.Budget`). One
JSON object comes back on the last line of stdout: the score and the CPU seconds. Libraries are used as their own
trainers use them; rows are scaled to length sqrt(D) for them, and codes and reconstructions are scored in that scale.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sae.worlds.benchmark import Budget, Pool, at_l0
from sae.worlds.scoring import Score, Scorer
from sae.worlds.world import World

KINDS = {
    "SAELens": ("topk", "batchtopk", "matryoshka", "l1", "jumprelu"),
    "dictionary_learning": ("topk", "batchtopk", "matryoshka", "l1", "jumprelu"),
    "sparsify": ("topk",),
}
RATES = (1e-3, 3e-3, 1e-2)
FIRST_WEIGHT = {"SAELens": 2.0, "dictionary_learning": 0.05}  # of an L1 penalty, in each library's own units
Codes = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows -> (dense codes, reconstructions)


def saelens(
    kind: str, d: int, b: Budget, lr: float, seed: int, rows: Iterator[Tensor], weight: float
) -> tuple[Tensor, Codes]:
    """(decoder rows, codes) of a SAELens dictionary."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(seed)
    F, warm = b.latents, b.steps // 10
    table: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, {"k": b.k}),
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": b.k}),
        "matryoshka": (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"k": b.k, "matryoshka_widths": [F // 16, F // 8, F // 4, F // 2, F]},
        ),
        "l1": (StandardTrainingSAE, StandardTrainingSAEConfig, {"l1_coefficient": weight, "l1_warm_up_steps": warm}),
        "jumprelu": (
            JumpReLUTrainingSAE,
            JumpReLUTrainingSAEConfig,
            {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": b.k, "l0_warm_up_steps": warm},
        ),
    }
    made, config, own = table[kind]
    sae: Any = made(config(d_in=d, d_sae=F, dtype="float32", device="cpu", apply_b_dec_to_input=True, **own))
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            n_checkpoints=0,
            checkpoint_path=None,
            save_final_checkpoint=False,
            total_training_samples=b.batch * b.steps,
            device="cpu",
            autocast=False,
            lr=lr,
            lr_end=lr / 10,
            lr_scheduler_name="constant",
            lr_warm_up_steps=min(100, warm),
            adam_beta1=0.9,
            adam_beta2=0.999,
            lr_decay_steps=b.steps // 5,
            n_restart_cycles=1,
            train_batch_size_samples=b.batch,
            dead_feature_window=50,
            feature_sampling_window=2000,
            logger=LoggingConfig(log_to_wandb=False, eval_every_n_wandb_logs=2**31 - 1),
        ),
        sae=sae,
        data_provider=rows,
    )
    trainer.fit()
    sae.eval()
    W = sae.W_dec.detach()

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        if kind in ("batchtopk", "matryoshka"):  # as they are saved: one threshold for all latents
            z = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
            norm = W.norm(dim=1) if sae.cfg.rescale_acts_by_decoder_norm else torch.ones(len(W))
            f = torch.where(z * norm > sae.topk_threshold.float(), z * norm, torch.zeros_like(z))
            return f, f @ (W / norm[:, None]) + sae.b_dec
        f = sae.encode(x)
        f = f.to_dense() if f.is_sparse else f
        return f, sae.decode(f)

    return W, codes


def dictionary_learning(
    kind: str, d: int, b: Budget, lr: float, seed: int, rows: Iterator[Tensor], weight: float
) -> tuple[Tensor, Codes]:
    """(decoder rows, codes) of a dictionary of dictionary_learning. Its penalties are stated for rows of length one."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    F, scale = b.latents, d**-0.5 if kind in ("l1", "jumprelu") else 1.0
    common: dict[str, Any] = {
        "steps": b.steps,
        "activation_dim": d,
        "dict_size": F,
        "layer": 0,
        "lm_name": "rows",
        "lr": lr,
        "warmup_steps": min(100, b.steps // 10),
        "decay_start": b.steps * 4 // 5,
        "seed": seed,
        "device": "cpu",
    }
    trainer: Any
    if kind == "topk":
        trainer = TopKTrainer(k=b.k, **common)
    elif kind == "batchtopk":
        trainer = BatchTopKTrainer(k=b.k, **common)
    elif kind == "matryoshka":
        fractions = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
        trainer = MatryoshkaBatchTopKTrainer(k=b.k, group_fractions=fractions, **common)
    elif kind == "l1":
        trainer = StandardTrainer(l1_penalty=weight, sparsity_warmup_steps=b.steps // 10, **common)
    else:
        trainer = JumpReluTrainer(target_l0=b.k, sparsity_warmup_steps=b.steps // 10, **common)
    for i, x in enumerate(rows):
        trainer.update(i, x * scale)
    ae = trainer.ae
    W = (ae.W_dec if hasattr(ae, "W_dec") else ae.decoder.weight.t()).detach()

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        f = ae.encode(x * scale)
        return f, ae.decode(f) / scale

    return W, codes


def sparsify(
    kind: str, d: int, b: Budget, lr: float, seed: int, rows: Iterator[Tensor], weight: float
) -> tuple[Tensor, Codes]:
    """(decoder rows, codes) of a sparsify dictionary, stepped as its trainer does with Adam."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(seed)
    model = SparseCoder(d, SparseCoderConfig(num_latents=b.latents, k=b.k))
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    for s, x in enumerate(rows):
        rate = min(1.0, (s + 1) / max(1, b.steps // 10), (b.steps - s) / (b.steps / 5))
        for group in adam.param_groups:
            group["lr"] = lr * rate
        model.set_decoder_norm_to_unit_norm()
        model(x).fvu.backward()
        model.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        out = model(x)
        return torch.zeros(len(x), b.latents).scatter(1, out.latent_indices, out.latent_acts), out.sae_out

    return model.W_dec.detach(), codes


LIBRARIES = {"SAELens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}


def measured(library: str, kind: str, lr: float, seed: int, budget: Budget) -> tuple[Score, float]:
    """(score, CPU seconds) of one kind of one library on the ``seed``-th world."""
    world = World(budget.of(seed))
    pool = Pool.drawn(world, budget, seed)
    scale = world.config.width**0.5 / float(pool.rows[: 2**14].norm(dim=1).mean())

    def make(weight: float) -> tuple[Score, float]:
        begin = time.thread_time()
        W, codes = LIBRARIES[library](
            kind, world.config.width, budget, lr, seed, (x * scale for x in pool.batches()), weight
        )
        seconds = time.thread_time() - begin
        scorer, generator = Scorer(world, W), torch.Generator().manual_seed(1_000_003)
        with torch.no_grad():
            for _ in range(0, budget.scored, 2000):
                x, f = world.sample(2000, generator)
                on, y = codes(x * scale)
                scorer.update(on, y / scale, x, f)
        return scorer.result(), seconds

    if kind != "l1":
        return make(0.0)
    found: tuple[Score, float] = at_l0(make, lambda r: r[0].l0, budget.k, FIRST_WEIGHT[library], budget.tries)
    return found


def main() -> None:
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    budget = Budget(**job["budget"])
    s, seconds = measured(job["library"], job["kind"], job["lr"], job["seed"], budget)
    print(json.dumps({"score": s.row(), "cpu_s": seconds}))


if __name__ == "__main__":
    main()
