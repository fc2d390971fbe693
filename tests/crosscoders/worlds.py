"""Synthetic sources with known latents, shared by the crosscoder tests."""

from __future__ import annotations

import torch
from torch import Tensor


class World:
    """``n_latents`` sparse latents seen by several sources; ``present`` [S, n_latents] says where each one exists."""

    def __init__(
        self,
        widths: list[int],
        present: Tensor,
        *,
        rate: float = 0.03,
        seed: int = 0,
        noise: float = 0.01,
        scales: list[float] | None = None,
        aligned: bool = False,
    ):
        self.generator = torch.Generator().manual_seed(seed)
        self.present, self.rate, self.noise = present.float(), rate, noise
        n = present.shape[1]
        self.rows = [torch.randn(n, w, generator=self.generator) for w in widths]
        self.rows = [r / r.norm(dim=1, keepdim=True) for r in self.rows]
        if aligned:  # a latent has one direction at all sources, as in a base and a fine-tuned model
            self.rows = [self.rows[0]] * len(widths)
        self.scales = scales or [1.0] * len(widths)

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """(rows [n, sum(widths)], codes [n, n_latents])."""
        shape = (n, self.present.shape[1])
        codes = (torch.rand(shape, generator=self.generator) < self.rate) * (
            0.5 + torch.rand(shape, generator=self.generator)
        )
        parts = []
        for s, (rows, scale) in enumerate(zip(self.rows, self.scales, strict=True)):
            clean = (codes * self.present[s]) @ rows
            parts.append(scale * (clean + self.noise * torch.randn(clean.shape, generator=self.generator) + 0.3))
        return torch.cat(parts, 1), codes
