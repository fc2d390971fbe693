"""How much of a world in superposition is found: L1 against the published recipe written out, JumpReLU against other
thresholds at the start, presets that must not kill latents, and ``faithful`` against ``few-steps``. 256 features with a
hierarchy in 48 dimensions, 128 latents.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf

from sae import SAE, SAEConfig, Trainer
from sae.model import ThresholdSAE
from sae.presets import preset
from sae.worlds import Score, World, WorldConfig, score
from sae.worlds.benchmark import equal_l0

D, F, K, STEPS, ROWS = 48, 128, 5, 400, 256


@cache
def planted(seed: int = 1) -> tuple[World, list[torch.Tensor]]:
    world = World(WorldConfig(n_features=256, width=D, roots=4, depth=2, p_max=0.3, p_min=2e-3, rank=8, seed=seed))
    rows = world.batches(ROWS, seed=seed + 1)
    return world, [next(rows) for _ in range(STEPS)]


def scored(sae: SAE, seed: int = 1) -> Score:
    return score(sae, planted(seed)[0], rows=4000)


def made(config: SAEConfig, seed: int = 1, steps: int = STEPS) -> SAE:
    trainer = Trainer(config, total_steps=steps)
    for x in planted(seed)[1][:steps]:
        trainer.step(x)
    return trainer.dictionary()


def ours(kind: Any, **own: Any) -> Score:
    return scored(made(SAEConfig(**{"d_in": D, "d_sae": F, "k": K, "dead_after": 5000, "activation": kind, **own})))


def written_out(weight: float, lr: float, warmup: int, clip: float | None = None) -> Score:
    """L1 as Anthropic's Circuits Updates of April 2024 and SAELens have it.

    Rows of length sqrt(D), tied rows of norm 0.1 at the start, the squared error and the sum of f_i n_i, the penalty's
    weight and the rate warmed up.
    """
    rows = planted()[1]
    scale = D**0.5 / torch.cat(rows[:20]).norm(dim=1).mean()
    start = 0.1 * nnf.normalize(torch.randn(F, D, generator=torch.Generator().manual_seed(0)), dim=1)
    enc, dec = start.clone().requires_grad_(), start.clone().requires_grad_()
    b_enc, b_dec = torch.zeros(F, requires_grad=True), torch.zeros(D, requires_grad=True)
    adam = torch.optim.Adam([enc, dec, b_enc, b_dec], lr=lr)
    for s, x in enumerate(rows):
        rate = min(1.0, (s + 1) / 40, (STEPS - s) / (STEPS / 5))
        for group in adam.param_groups:
            group["lr"] = lr * rate
        x = x * scale
        f = ((x - b_dec) @ enc.t() + b_enc).relu()
        penalty = weight * min(1.0, (s + 1) / warmup) * (f * dec.norm(dim=1)).sum(1).mean()
        loss = (f @ dec + b_dec - x).square().sum(1).mean() + penalty
        adam.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([enc, dec, b_enc, b_dec], clip)
        adam.step()
    out = ThresholdSAE(D, F, architecture="standard")
    with torch.no_grad():
        n = dec.norm(dim=1).clamp_min(1e-9)
        out.enc_FD.copy_(enc * scale * n[:, None] / scale)
        out.b_enc.copy_(b_enc * n / scale)
        out.dec_FD.copy_(dec / n[:, None])
        out.b_dec.copy_(b_dec / scale)
    return scored(out)


def test_l1_finds_as_much_as_the_published_recipe_and_its_warm_up_is_why() -> None:
    """At one weight and rate.

    Measured: F1 .53, MCC .77 at L0 5.3; the recipe .48, .74 at 6.5; ours without warm-up .47, .76 at 6.3.
    """
    at = {"kind": "l1", "coefficient": 2.0}
    found, recipe, abrupt = ours(at, lr=1e-2), written_out(2.0, 1e-2, 40), ours(at | {"warmup": 0}, lr=1e-2)
    assert found.mcc >= recipe.mcc and found.f1 >= recipe.f1 and found.l0 <= recipe.l0, (found, recipe)
    assert found.ev >= recipe.ev - 0.02
    assert found.f1 >= abrupt.f1 + 0.02 and found.f1_matched >= abrupt.f1_matched + 0.02, (found, abrupt)


def test_l1_of_faithful_finds_more_than_the_published_recipe_with_its_gradient_clipped() -> None:
    """At weights that give about one L0.

    Measured: F1 .55, MCC .77, EV .80 at L0 5.0; the recipe .54, .75, .78 at 5.2.
    """
    own = preset("faithful", d_in=D, d_sae=F, k=K, kind="l1")
    found = ours(own.pop("activation") | {"coefficient": 1.6}, **own)
    recipe = written_out(2.0, 1e-2, 40, clip=1.0)
    assert found.f1 >= recipe.f1 and found.f1_matched >= recipe.f1_matched + 0.01, (found, recipe)
    assert found.mcc >= recipe.mcc and found.ev >= recipe.ev and found.l0 <= recipe.l0, (found, recipe)


def test_thresholds_start_where_k_latents_are_on() -> None:
    """Thresholds and windows of one, in rows of unit mean square, close most latents before they have learnt anything.

    Measured at the same L0: F1 .61 and MCC .84 against .55 and .82.
    """
    few = preset("few-steps", d_in=D, d_sae=F, k=K, kind="jumprelu")
    found = ours("jumprelu", **few)
    closed = ours({"kind": "jumprelu", "threshold": 1.0, "window": 1.0}, **few)
    assert found.f1 >= closed.f1 + 0.02 and found.mcc >= closed.mcc, (found, closed)
    assert abs(found.l0 / K - 1) <= 0.1 and abs(closed.l0 / K - 1) <= 0.1 and found.dead <= 0.05


@pytest.mark.parametrize("kind", ["batchtopk", pytest.param("matryoshka", marks=pytest.mark.slow)])
def test_few_steps_kills_few_latents_of_a_batch_top_k(kind: str) -> None:
    """Measured: none, and MCC .81 against .78 and .74 at half its rate."""
    found = ours(kind, **preset("few-steps", d_in=D, d_sae=F, k=K, kind=kind))
    assert found.dead <= 0.03 and found.mcc >= 0.78, found


@cache
def of_preset(name: str, kind: str, seed: int) -> Score:
    """A preset's dictionary on a world held out, at an L0 of K."""
    own = preset(name, d_in=D, d_sae=F, k=K, kind=kind)
    config = SAEConfig(**{**own, "d_in": D, "d_sae": F, "k": K, "activation": own.get("activation", kind)})
    sae = made(config, seed)
    return scored(sae if kind == "topk" else equal_l0(sae, torch.cat(planted(seed)[1][:16]), K), seed)


@pytest.mark.parametrize(("kind", "more"), [("topk", 0.08), pytest.param("matryoshka", 0.0, marks=pytest.mark.slow)])
def test_faithful_finds_more_than_few_steps_at_the_same_l0_on_worlds_held_out(kind: str, more: float) -> None:
    """Paired by world.

    Measured in three: F1 +.12 to +.14 over ``few-steps``, a Top-K where nothing else is said; +.02 to +.07 over its
    Matryoshka.
    """
    gained = []
    for seed in (101, 102):
        faithful, few = of_preset("faithful", "matryoshka", seed), of_preset("few-steps", kind, seed)
        assert abs(faithful.l0 / K - 1) <= 0.05 and abs(few.l0 / K - 1) <= 0.05, (faithful, few)
        gained.append(faithful.f1 - few.f1)
    assert sum(gained) / len(gained) > more and min(gained) > 0, gained
