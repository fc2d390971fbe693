"""What a crosscoder must say where the truth is planted: nothing changes, or some latents exist in
some sources only.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sae
from crosscoders import Crosscoder, CrosscoderConfig, evaluate_sources
from crosscoders.evolution import classify, cosine_matrices, first_above, relative_norms
from tests.crosscoders.worlds import World


def trained(world: World, n_sources: int, steps: int, *, copies: int = 1, **values) -> Crosscoder:
    width = sum(r.shape[1] for r in world.rows) * copies // n_sources
    trainer = sae.Trainer(CrosscoderConfig(widths=[width] * n_sources, dead_after=3000, **values), total_steps=steps)
    for _ in range(steps):
        trainer.step(world.batch(256)[0].repeat(1, copies))
    return trainer.dictionary()


@pytest.mark.parametrize("activation, shared_start, tolerance", [("topk", True, 1e-4), ("batchtopk", False, 0.02)])
def test_copies_of_one_snapshot_give_flat_norms_and_cosine_one(activation, shared_start, tolerance):
    """Also where every source began with decoder directions of its own."""
    world = World([24], torch.ones(1, 40), rate=0.04)
    # Latents that start anew late, each source with noise of its own, have no time left to agree: only shared starts
    # may revive.
    values = {"activation": activation, "shared_start": shared_start, "revive": shared_start}
    cc = trained(world, 4, 450, copies=4, d_sae=48, k=2, lr=1e-2, **values)
    e = evaluate_sources(cc, [world.batch(3000)[0].repeat(1, 4)])
    alive = (e.fired_F > 30).numpy()
    relative = relative_norms(cc.decoder_norms())[:, alive]
    cosines = cosine_matrices([b.numpy() for b in cc.decoder_blocks()])[alive]
    assert alive.sum() >= 35 and max(e.ev_S) - min(e.ev_S) < 1e-3
    assert relative.min() > 1 - tolerance and cosines.min() > 1 - tolerance
    assert (classify(relative) == "initialisation").all() and (first_above(relative, 0.9) == 0).all()


def matched(cc: Crosscoder, world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every latent: its planted partner by code correlation, that correlation, and how often it fired."""
    x, codes = world.batch(6000)
    f = cc.encode(x)
    a, b = codes - codes.mean(0), f - f.mean(0)
    r = (a.T @ b) / (a.norm(dim=0)[:, None] * b.norm(dim=0)[None, :].clamp_min(1e-9))
    best, partner = r.max(0)
    return partner.numpy(), best.numpy(), (f > 0).sum(0).numpy()


@pytest.mark.parametrize(
    "activation, k, seeds", [("topk", 3, 1), pytest.param("batchtopk", 2, 3, marks=pytest.mark.slow)]
)
def test_latents_planted_in_some_sources_are_classified(activation, k, seeds):
    """Presence at every source by relative norm > 0.5, against the planted presence: precision and recall at least 0.95
    over the seeds.
    """
    present = torch.ones(3, 40)
    present[0, 24:30] = 0  # born at the second snapshot
    present[1:, 30:35] = 0  # die after the first
    present[:2, 35:] = 0  # born at the third
    planted, precise, found, classes = 16, [], 0, []
    for seed in range(seeds):
        world = World([32, 32, 32], present, rate=0.04)
        cc = trained(world, 3, 500, d_sae=96, k=k, k_aux=8, activation=activation, lr=5e-3, seed=seed)
        partner, r, fired = matched(cc, world)
        used = np.flatnonzero((fired > 30) & (r > 0.8))
        relative = relative_norms(cc.decoder_norms())[:, used]
        said, truth = relative > 0.5, present.numpy()[:, partner[used]] > 0
        right = (said == truth).all(0)
        precise += right[~said.all(0)].tolist()
        found += len({int(p) for p, ok in zip(partner[used], right, strict=True) if ok and p >= 40 - planted})
        classes += ((classify(relative) == "emergent") == ~truth[0]).tolist()
    assert len(precise) >= 10 * seeds and np.mean(precise) >= 0.95, "precision"
    assert found / (planted * seeds) >= 0.95, "recall"
    assert np.mean(classes) >= 0.95, "what is absent at first falls below a tenth of its norm, and nothing else does"
