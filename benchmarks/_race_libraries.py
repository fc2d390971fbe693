"""The libraries of the races, each stepped as its own trainer steps it: optimiser, bookkeeping, dead latents and all.

Run in an environment that has them (``benchmarks/peers.sh``). Rows come scaled to length sqrt(D); warm-up is the first
tenth of the steps and decay the last fifth, in all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

SETTINGS = ("default", "few-steps")  # ours without a rate to choose: the defaults, and a preset
PACKAGES = {"sparsify": "eai-sparsify", "SAELens": "sae-lens", "dictionary_learning": "dictionary-learning"}
Runner = tuple[
    Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]
]  # (step(x), reconstruct(x), dense latents(x))


def settings_of(name: str, lr: float | str, d: int, expansion: int, k: int) -> dict[str, Any]:
    """What decides a run beside its rows, steps and seed: of ours all settings, of others version and rate."""
    if name != "workbench":
        return {"version": version(PACKAGES[name]), "lr": lr}
    return config_of(d, expansion * d, k, lr).model_dump(mode="json")


def config_of(d: int, f: int, k: int, lr: float | str, **more: Any) -> Any:
    """Ours at a rate, at its defaults, or with a preset."""
    from sae import SAEConfig
    from sae.presets import preset

    own: dict[str, Any] = {} if lr == "default" else {"lr": lr}
    if isinstance(lr, str) and lr != "default":
        own = preset(lr, d_in=d, d_sae=f, k=k)
    return SAEConfig(**{"d_in": d, "d_sae": f, "k": k, **more, **own})


def ours(d: int, f: int, k: int, lr: float | str, steps: int, seed: int, first: Any) -> Runner:
    from sae import Trainer

    config = config_of(d, f, k, lr, warmup_steps=steps // 10, seed=seed)
    trainer = Trainer(config, total_steps=steps)
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
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * len(first),
        device="cpu",
        autocast=False,
        lr=lr,
        lr_end=lr / 1000,
        lr_scheduler_name="constant",
        lr_warm_up_steps=steps // 10,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=steps // 5,
        n_restart_cycles=1,
        train_batch_size_samples=len(first),
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
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
    rate = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda s: min(1.0, (s + 1) / (steps / 10), max(0.0, (steps - s) / (steps / 5)))
    )
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

    trainer = TopKTrainer(
        steps,
        d,
        f,
        k,
        layer=0,
        lm_name="rows",
        lr=lr,
        warmup_steps=steps // 10,
        decay_start=steps * 4 // 5,
        seed=seed,
        device="cpu",
    )
    counter = iter(range(10**9))
    return lambda x: trainer.update(next(counter), x), trainer.ae, trainer.ae.encode


LIBRARIES: dict[str, Callable[..., Runner]] = {
    "workbench": ours,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "SAELens": saelens,
}
