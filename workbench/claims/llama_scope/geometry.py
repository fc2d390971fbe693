"""Top-K and L1 dictionaries of different seeds find like directions, beyond what the data's covariance gives."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf

from sae import SAEConfig, TopKConfig
from sae.config import ActivationConfig
from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab
from workbench.claims.recipe import plain

NEAR = 0.7
OTHER = 500  # added to the seed of the L1 dictionary: arms that share a start share directions


def measure(lab: Lab) -> Finding:
    """Mean best cosine of the Top-K decoder rows among rows of an L1 dictionary of another seed; control: as many
    directions drawn from the covariance of the data.
    """
    x = lab.heldout()
    d, best, drawn, near = x.shape[1], [], [], []
    root = torch.linalg.cholesky(torch.cov(x.T.double()) + 1e-6 * torch.eye(d, dtype=torch.float64)).float()
    for seed in lab.each_seed():
        a = lab.train(TopKConfig(d_in=d, d_sae=1024, k=16, seed=seed, **plain(1024))).W_dec
        l1 = ActivationConfig(kind="l1", coefficient=2.0, warmup=lab.steps // 10)
        b = lab.train(SAEConfig(d_in=d, d_sae=1024, k=16, seed=seed + OTHER, activation=l1, **plain(1024))).W_dec
        like_data = torch.randn(len(a), d, generator=torch.Generator().manual_seed(seed)) @ root.T
        cosines = _best(a, b)
        best.append(float(cosines.mean()))
        near.append(float((cosines >= NEAR).float().mean()))
        drawn.append(float(_best(like_data, b).mean()))
    note = f"{100 * sum(near) / len(near):.0f} % of the Top-K latents have a cosine of at least {NEAR}"
    return Finding(Measured.of(best, unit="cosine"), Measured.of(drawn, unit="cosine"), note=note)


def _best(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (nnf.normalize(a, dim=1) @ nnf.normalize(b, dim=1).T).max(1).values


CLAIM = Claim(
    id="llama-scope.geometry",
    paper="llama-scope",
    section="4.6, figure 9",
    statement=(
        "Top-K latents lie nearer to directions of an L1 dictionary of another seed than directions drawn from the"
        " data's covariance do."
    ),
    paper_number="random nearest neighbours 0.09-0.10 in 4,096 dimensions",
    experiment="Mean best decoder cosine Top-K to L1; the two dictionaries share no start.",
    control="As many Gaussian directions with the covariance of the held-out rows, against the same L1 dictionary.",
    rule=Rule("above", 0.0, "beaten"),
    unit="seed of the dictionaries",
    would_change="Directions with the data's covariance that come as near.",
    measure=measure,
    needs=("demo store",),
    cost=16,
)
