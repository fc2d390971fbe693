"""The decoder of least error for the codes a dictionary already has, in closed form.

A step of Adam moves a decoder row a little each time its latent fires, so after a short training a rare latent still
carries some of the random row it began with, most of all in a crosscoder, whose row is as long as all its sources
together. Encoder and codes stay as they are; decoder W and bias b become the minimum over some rows of

    sum_t |x_t - b - f_t W|^2 + sum_i lambda_i |W_i|^2,     lambda_i = ridge * mean f_i^2 where latent i is on

``ridge`` is in firings: a latent on its own that fired n times is shrunk by n / (n + ridge). Latents that never fired
keep their row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor

from sae.backends.base import code_sums
from sae.devices import wide, wide_home
from sae.errors import ConfigError, UserError
from sae.model import SAE

D = TypeVar("D", bound=SAE)


@torch.no_grad()
def refit(sae: D, batches: Iterable[Tensor], *, ridge: float = 1.0) -> D:
    """A copy of a folded dictionary with the decoder and decoder bias of least error on raw rows [B, d_in]; the same
    codes.

    Raises:
        ConfigError: a negative ridge, or a dictionary that reconstructs something else than what it reads. UserError:
        no rows.
    """
    if ridge < 0:
        raise ConfigError(f"ridge = {ridge} must not be negative.")
    if sae.d_out != sae.d_in or sae.kind == "transcoder":
        raise ConfigError(
            "refitting fits the decoder to the rows a dictionary reads, and a transcoder writes others; train it for"
            " longer instead."
        )
    if sae.kind == "write":
        raise ConfigError(
            "refitting gives decoder rows that are no longer rank-one matrices, which a dictionary of writes needs;"
            " train the dictionary of writes for longer instead."
        )
    sums: list[_Sums] = []
    for x in batches:
        parts = list(sae.coded(x))
        sums = sums or [_Sums(sae.d_sae, rows.shape[1], sae.enc_FD.device) for rows, _, _ in parts]
        for one, part in zip(sums, parts, strict=True):
            one.add(*part)
    if not sums or sums[0].n == 0:
        raise UserError("no rows to fit the decoder to: the batches are empty. Give at least one row.")
    out = copy.deepcopy(sae)
    blocks = out.dec_FD.split([one.x_sum.numel() for one in sums], dim=1)
    biases = [one.solve(block, ridge) for one, block in zip(sums, blocks, strict=True)]
    out.move_bias(torch.cat(biases).to(out.b_dec))
    return out


class _Sums:
    """What least squares needs of rows x [B, D] and their codes: sum_t f_t' (f_t, x_t) and the plain sums."""

    def __init__(self, F: int, D: int, device: torch.device):
        self.moments = torch.zeros(F, F + D, dtype=torch.float64, device=wide_home(device))
        self.f_sum, self.x_sum = self.moments.new_zeros(F), self.moments.new_zeros(D)
        self.fired, self.n = torch.zeros(F, dtype=torch.int64, device=self.moments.device), 0

    def add(self, x: Tensor, values: Tensor, indices: Tensor) -> None:
        F, home = len(self.fired), self.fired.device
        codes = values.new_zeros(len(x), F).scatter_add_(1, indices, values)
        self.moments += wide(code_sums(values, indices, torch.cat([codes, x.to(values)], dim=1), F))
        self.f_sum.index_add_(0, indices.flatten().to(home), wide(values.flatten()))
        self.x_sum += wide(x).sum(0)
        self.fired += torch.bincount(indices[values > 0], minlength=F).to(home)
        self.n += len(x)

    def solve(self, dec_FD: Tensor, ridge: float) -> Tensor:
        """Write the decoder of least error into ``dec_FD``; its bias [D] in float64."""
        F, on = len(self.fired), self.fired > 0
        gram = self.moments[:, :F] - torch.outer(self.f_sum, self.f_sum) / self.n
        cross = self.moments[:, F:] - torch.outer(self.f_sum, self.x_sum) / self.n
        gram.diagonal().add_(ridge * self.moments[:, :F].diagonal() / self.fired.clamp_min(1))
        decoder = wide(dec_FD)
        decoder[on] = torch.linalg.solve(gram[on][:, on], cross[on] - gram[on][:, ~on] @ decoder[~on])
        dec_FD.copy_(decoder)
        return (self.x_sum - self.f_sum @ wide(dec_FD)) / self.n
