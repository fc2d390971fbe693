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
        raise ConfigError("a transcoder's decoder is not fitted to the rows it reads; train it for longer instead.")
    F = sae.d_sae
    moments = torch.zeros(F, F + sae.d_in, dtype=torch.float64, device=sae.enc_FD.device)  # sum_t f_t' (f_t, x_t)
    f_sum, x_sum = moments.new_zeros(F), moments.new_zeros(sae.d_in)
    fired, n = torch.zeros(F, dtype=torch.int64, device=moments.device), 0
    for x in batches:
        values, indices = sae.encode_sparse(x)
        row = torch.arange(len(x), device=x.device).repeat_interleave(values.shape[1])
        at = torch.stack([indices.flatten(), row])
        codes = torch.sparse_coo_tensor(at, values.flatten(), (F, len(x)), check_invariants=False)
        moments += torch.sparse.mm(codes, torch.cat([codes.t().to_dense(), x.to(values)], dim=1)).double()
        f_sum.index_add_(0, indices.flatten(), values.flatten().double())
        x_sum += x.double().sum(0)
        fired += torch.bincount(indices[values > 0], minlength=F)
        n += len(x)
    if n == 0:
        raise UserError("no rows to fit the decoder to.")
    gram, cross = moments[:, :F] - torch.outer(f_sum, f_sum) / n, moments[:, F:] - torch.outer(f_sum, x_sum) / n
    on = fired > 0
    gram.diagonal().add_(ridge * moments[:, :F].diagonal() / fired.clamp_min(1))
    out = copy.deepcopy(sae)
    kept = sae.dec_FD[~on].double()
    cross = cross[on] - gram[on][:, ~on] @ kept
    out.dec_FD[on] = torch.linalg.solve(gram[on][:, on], cross).to(out.dec_FD)
    bias = ((x_sum - f_sum @ out.dec_FD.double()) / n).to(out.b_dec)
    if sae.centred:  # the encoder goes on reading x around the old bias
        out.b_enc.add_(out.enc_FD @ (bias - sae.b_dec))
    out.b_dec.copy_(bias)
    return out
