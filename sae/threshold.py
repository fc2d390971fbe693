"""A dictionary whose latents open at a threshold each (JumpReLU; a ReLU is a threshold of zero).

What BatchTopK, L1 and JumpReLU dictionaries are once they are trained, how Top-K dictionaries become JumpReLU ones
(Llama Scope §3.3.4), and how other libraries' ReLU and JumpReLU dictionaries live here. The number of active latents
differs from row to row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae.activation import Threshold
from sae.devices import wide
from sae.errors import CorruptError, UserError
from sae.folder import check_shapes, dimensions, register
from sae.model import ROWS, SAE, ThresholdSAE

_LOW, _HIGH, _STEP = -28.0, 28.0, 1e-4  # natural logarithms: 7e-13 to 1e12


@torch.no_grad()
def to_jumprelu(sae: SAE, batches: Iterable[Tensor], *, k: float | None = None) -> SAE:
    """Turn a Top-K dictionary into a JumpReLU one with a single threshold at which ``k`` latents fire per row on
    average.

    The threshold is the quantile of all positive pre-activations over every row given (Llama Scope §3.3.4 takes one
    batch; many lower the variance between documents), read off counts on a logarithmic grid of relative width 1e-4, so
    memory does not grow with rows.

    Args:
        sae: a Top-K SAE or transcoder, with unit decoders or not; pre-activations are compared as they are.
        batches: raw rows [B, d_in] (a transcoder's may hold the output beside). k: target mean L0; the dictionary's own
        by default.

    Raises:
        UserError: no rows, or a dictionary that has thresholds already.
    """
    folded = sae.folded()
    if folded.thresholds() is not None:
        raise UserError(
            "this dictionary has thresholds already (ReLU, JumpReLU or BatchTopK): there is nothing to convert."
        )
    target = float(folded.k if k is None else k)
    out = folded.like(Threshold(round(target)))
    for name, p in folded.named_parameters():
        out.get_parameter(name).copy_(p)
    out.metadata = dict(folded.metadata)
    counts, rows = torch.zeros(int((_HIGH - _LOW) / _STEP) + 1, dtype=torch.int64), 0
    for x in batches:
        rows += len(x)
        for part in x[:, : folded.d_in].split(ROWS):
            z = out.pre_activations(part)
            columns = ((wide(z[z > 0]).log() - _LOW) / _STEP).long().clamp_(0, len(counts) - 1)
            counts += torch.bincount(columns, minlength=len(counts)).cpu()
    if rows == 0:
        raise UserError("no rows to find a threshold on: the batches are empty. Give at least one row.")
    above = counts.flip(0).cumsum(0).flip(0)  # entries at or above each grid point
    place = int((above > target * rows).sum())  # the lowest grid point that at most target × rows entries reach
    out.threshold_F.fill_(math.exp(_LOW + place * _STEP) if place else 0.0)
    return out.requires_grad_(False).eval()


def read_threshold(cfg: dict[str, Any], tensors: dict[str, Tensor], where: str) -> SAE:
    """The reader of ReLU and JumpReLU folders (SAELens ``standard`` and ``jumprelu``).

    Raises:
        CorruptError: tensors of other shapes than promised.
    """
    d_in, d_sae = dimensions(cfg, where)
    expected: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_in),
        "b_enc": (d_sae,),
        "b_dec": (d_in,),
    }
    if cfg.get("architecture") != "standard":
        expected["threshold"] = (d_sae,)
    check_shapes(tensors, expected, where)
    sae = ThresholdSAE(
        d_in,
        d_sae,
        k=int(cfg.get("metadata", {}).get("k") or 0),
        architecture=str(cfg["architecture"]),
        dtype=tensors["W_enc"].dtype,
    )
    with torch.no_grad():
        sae.enc_FD.copy_(tensors["W_enc"].t())
        sae.dec_FD.copy_(tensors["W_dec"])
        sae.b_dec.copy_(tensors["b_dec"])
        sae.b_enc.copy_(tensors["b_enc"])
        if not cfg.get("apply_b_dec_to_input", True):
            sae.b_enc.add_(sae.enc_FD @ sae.b_dec)
        if "threshold" in tensors:
            sae.threshold_F.copy_(tensors["threshold"])
    if (tensors.get("threshold", torch.zeros(1)) < 0).any():
        raise CorruptError(
            f"{where}: it holds negative thresholds, and a JumpReLU latent is on above a threshold of zero or more."
            " Restore the folder from a copy, or convert it again."
        )
    return sae


for _architecture in ("jumprelu", "standard"):
    register(_architecture, "sae", read_threshold)
