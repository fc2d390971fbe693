"""The control of the whole method: copies of one snapshot have no history."""

from __future__ import annotations

import torch

from workbench.claims.base import Claim, Finding, Measured, untestable
from workbench.claims.lab import Lab


def measure(lab: Lab) -> Finding:
    """Spread of relative decoder norms over four copies of one site, and over four real snapshots as the contrast."""
    from crosscoders import CrosscoderConfig

    spread = []
    d = lab.heldout().shape[1]
    for seed in lab.each_seed():
        config = CrosscoderConfig(widths=(d,) * 4, d_sae=512, k=16, seed=seed)

        def make(config: CrosscoderConfig = config) -> torch.Tensor:
            from sae import Trainer

            trainer = Trainer(config, total_steps=lab.steps // 2)
            for _, x in zip(range(lab.steps // 2), lab.rows(seed=config.seed), strict=False):
                trainer.step(x.repeat(1, 4))
            norms: torch.Tensor = trainer.dictionary().decoder_norms()  # type: ignore[operator]
            return norms / norms.max(0).values.clamp_min(1e-12)

        relative = lab.once(("copies", seed), make)
        spread.append(float((relative.max(0).values - relative.min(0).values).quantile(0.95)))
    table = lab.evolution(0).table
    norms = lab.evolution(0).norms(table.loc[table["alive"], "latent"].to_numpy())
    if norms is None:
        return untestable("the crosscoder over snapshots has no decoder norms")
    real = torch.as_tensor(norms)
    real = real / real.max(1, keepdim=True).values.clamp_min(1e-12)
    contrast = float((real.max(1).values - real.min(1).values).nanmean())
    return Finding(
        Measured.of(spread, unit="95 % of latents' spread"),
        Measured(contrast, None, None, len(real), "mean spread over real snapshots"),
    )


CLAIM = Claim(
    id="evolution.same-snapshot-control",
    paper="evolution",
    section="control",
    statement=(
        "A crosscoder over copies of one snapshot gives flat decoder norms: what moves over real snapshots is not the"
        " method."
    ),
    paper_number="not reported",
    experiment="Four copies of the same activations; spread of relative norms within latents (95th percentile).",
    control="Real snapshots, whose norms must move.",
    criterion="Spread at most 0.1 for the copies, above 0.1 for real snapshots.",
    measure=measure,
    holds=lambda f: f.effect.ceiling <= 0.1 and f.control is not None and f.control.value > 0.1,
    needs=("demo store", "evolution"),
    cost=15,
)
