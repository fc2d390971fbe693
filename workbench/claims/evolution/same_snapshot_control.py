"""The control of the whole method: copies of one snapshot have no history."""

from __future__ import annotations

import numpy as np
import torch

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab

COPIES = 4


def turned(d: int, seed: int) -> torch.Tensor:
    """[COPIES, d, d] random rotations: the same information, but no two copies start alike."""
    g = torch.Generator().manual_seed(seed)
    return torch.stack([torch.linalg.qr(torch.randn(d, d, generator=g))[0] for _ in range(COPIES)])


def measure(lab: Lab) -> Finding:
    """Mean spread of relative decoder norms over four copies of one site, each turned by its own rotation.

    Control: the same over four real snapshots, whose norms must move.
    """
    from crosscoders import CrosscoderConfig
    from sae import Trainer

    spread, emergent, d = [], [], lab.heldout().shape[1]
    for seed in lab.each_seed():
        config, turns = CrosscoderConfig(widths=(d,) * COPIES, d_sae=512, k=16, seed=seed), turned(d, seed)

        def make(config: CrosscoderConfig = config, turns: torch.Tensor = turns) -> torch.Tensor:
            trainer = Trainer(config, total_steps=lab.steps // 2)
            for _, x in zip(range(lab.steps // 2), lab.rows(seed=config.seed), strict=False):
                trainer.step(torch.cat([x @ t for t in turns], dim=1))
            norms: torch.Tensor = trainer.dictionary().decoder_norms()  # type: ignore[operator]
            return norms / norms.max(0).values.clamp_min(1e-12)

        relative = lab.once(("copies", seed), make)
        spread.append(float((relative.max(0).values - relative.min(0).values).mean()))
        emergent.append(float((relative.min(0).values < 0.1).float().mean()))
    real = []
    for seed in lab.each_seed():
        evolution = lab.evolution(seed)
        norms = evolution.norms(evolution.table.loc[evolution.table["alive"], "latent"].to_numpy())
        if norms is None:
            return untestable("the crosscoder over snapshots has no decoder norms")
        chosen = norms[:, np.linspace(0, norms.shape[1] - 1, COPIES).round().astype(int)]
        chosen = chosen / chosen.max(1, keepdims=True).clip(1e-12)
        real.append(float((chosen.max(1) - chosen.min(1)).mean()))
    note = f"{100 * max(emergent):.1f} % of the latents lack a tenth of their norm at some copy"
    unit = "mean spread"
    return Finding(Measured.of(spread, unit=unit), Measured.of(real, unit=unit), None, note)


CLAIM = Claim(
    id="evolution.same-snapshot-control",
    paper="evolution",
    section="control",
    statement="Copies of one snapshot have no history: their relative decoder norms stay alike.",
    paper_number="not reported",
    experiment=(
        "Four copies of the same activations, each turned by a random rotation, so that starts differ; mean spread of"
        " relative norms within latents."
    ),
    control="The same over four snapshots of the crosscoder over the whole training.",
    rule=Rule("at most", 0.1, "outside"),
    unit="seed of the crosscoder",
    would_change="A spread above 0.1 where there is no history.",
    measure=measure,
    needs=("demo store", "evolution"),
    cost=5,
)
