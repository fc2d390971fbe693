"""Folding scales and norms into the weights changes nothing, thresholds included."""

from __future__ import annotations

import torch

from sae import ThresholdSAE
from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab


def measure(lab: Lab) -> Finding:
    """Largest relative change of outputs through folding; control: a fold that forgets the thresholds."""
    x = lab.heldout()[:2048].double()
    d = x.shape[1]
    worst, broken = [], []
    for seed in lab.each_seed():
        g = torch.Generator().manual_seed(seed)
        sae = ThresholdSAE(d, 512, dtype=torch.float64)
        with torch.no_grad():
            for p in (sae.enc_FD, sae.dec_FD, sae.b_enc):
                p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / d**0.5)
            sae.scale_D.fill_(0.1)
            sae.threshold_F.copy_(torch.rand(512, generator=g, dtype=torch.float64))
            folded, wrong = sae.folded(), sae.folded()
            wrong.threshold_F.copy_(sae.threshold_F)
            y = sae(x)
            worst.append(float((folded(x) - y).norm() / y.norm()))
            broken.append(float((wrong(x) - y).norm() / y.norm()))
    return Finding(
        Measured.of(worst, unit="relative change"),
        Measured.of(broken, unit="relative change"),
    )


CLAIM = Claim(
    id="llama-scope.folding",
    paper="llama-scope",
    section="3.3.4",
    statement="Folding the input scale and decoder norms into the weights leaves every output as it was.",
    paper_number="exact by construction",
    experiment="JumpReLU dictionaries with a scale of 0.1; largest relative change of outputs on held-out rows.",
    control="A fold that forgets the thresholds, a published tool's error.",
    rule=Rule("at most", 1e-9, "outside"),
    unit="random dictionary",
    would_change="A relative change above 1e-9 in double precision.",
    measure=measure,
    needs=("demo store",),
    cost=1,
)
