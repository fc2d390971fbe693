"""Small dictionaries of any model at one hook, made in seconds, for experiments that need many of them alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

if TYPE_CHECKING:
    from sae import SAE
    from workbench.analysis.correlation import Match

LATENTS, K, BATCH = 512, 16, 512
FIRINGS = 30  # for a latent to be matched


def rows_at(model: Any, hook: str, tokens: torch.Tensor) -> torch.Tensor:
    """[n * (ctx - 1), D] activations of tokens [n, ctx] without the first position."""
    from workbench.activations.harvesting.forward import capture

    return torch.cat([capture(model, part, [hook])[hook][:, 1:].flatten(0, 1).float() for part in tokens.split(32)])


def train_small(rows: torch.Tensor, seed: int, steps: int) -> SAE:
    """A Top-K dictionary of :data:`LATENTS` latents trained on rows [N, D] in an order that follows the seed."""
    from sae import TopKConfig, Trainer, preset

    d = rows.shape[1]
    settings = preset("few-steps", d_in=d, d_sae=LATENTS, k=K)
    trainer = Trainer(TopKConfig(d_in=d, d_sae=LATENTS, k=K, seed=seed, **settings), total_steps=steps)

    def batches() -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield from (rows[i] for i in torch.randperm(len(rows), generator=generator).split(BATCH) if len(i) == BATCH)

    for _, x in zip(range(steps), batches(), strict=False):
        trainer.step(x)
    return trainer.dictionary()


def codes_of(dictionary: SAE, rows: torch.Tensor) -> sp.csr_array:
    """[N, F] sparse codes of rows [N, D]."""
    from workbench.analysis.latents.encoded import from_rows

    values, indices = dictionary.encode_sparse(rows)
    row = np.arange(len(rows))
    return sp.csr_array(from_rows(LATENTS, row, row, row, values.numpy(), indices.numpy()).matrix().tocsr())


def match_with_null(a: sp.csr_array, b: sp.csr_array, cells: Any, rng: np.random.Generator) -> tuple[Match, Match]:
    """(match of a with b by codes given the token, the same with b's tokens exchanged among their like); codes [N, F]
    on the rows of ``cells``. Latents that fire fewer than :data:`FIRINGS` times take no part.
    """
    from workbench.analysis.comparison.given_token import TokenConditionalSide
    from workbench.analysis.correlation import correlate

    def side(codes: sp.csr_array) -> TokenConditionalSide:
        return TokenConditionalSide(sp.csr_array(codes), cells, "codes given the token", FIRINGS)

    ours = side(a)
    return correlate(ours, side(b)), correlate(ours, side(b[cells.exchanged(rng)]))
