"""A dictionary whose latents open at a threshold each (JumpReLU; a ReLU is a threshold of zero).

How Top-K dictionaries become JumpReLU ones (Llama Scope §3.3.4), how other libraries' ReLU and JumpReLU dictionaries live here, and
what a transcoder with a skip connection is. The number of active latents differs from row to row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae.activation import Threshold
from sae.errors import CorruptError, UserError
from sae.model import ROWS, SAE

_LOW, _HIGH, _STEP = -28.0, 28.0, 1e-4  # natural logarithms: 7e-13 to 1e12


class ThresholdSAE(SAE):
    """``f = z 1[z > threshold_F]``, ``z = relu((x * scale - b_dec) W_enc + b_enc)``; optionally ``y += x W_skip``.

    Args:
        k: nominal L0, 0 where it is not known. skip: whether there is a skip connection ``skip_DD`` [d_in, d_in] (a transcoder's).
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        k: int = 0,
        skip: bool = False,
        architecture: str = "jumprelu",
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(d_in, d_sae, Threshold(k, architecture), dtype=dtype)
        self.register_buffer("skip_DD", torch.zeros(d_in, d_in, dtype=dtype) if skip else None)
        self.skip_DD: Tensor | None

    def skip(self, x: Tensor) -> Tensor | None:
        """What the skip connection adds to the reconstruction of raw rows, or None without one."""
        return None if self.skip_DD is None else x.to(self.skip_DD.dtype) @ self.skip_DD

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of raw rows [..., d_in]."""
        y, skip = super().forward(x), self.skip(x)
        return y if skip is None else y + skip

    def extras(self) -> dict[str, Tensor]:
        """Tensors saved beside the four of every dictionary."""
        return super().extras() | ({} if self.skip_DD is None else {"W_skip": self.skip_DD.t()})

    def folded(self) -> SAE:
        """A copy without a scale; thresholds follow the units of the activations (forgetting them multiplies L0)."""
        out = super().folded()
        if self.skip_DD is not None:
            out.register_buffer("skip_DD", self.skip_DD.clone())
        out.kind = self.kind
        return out


@torch.no_grad()
def to_jumprelu(sae: SAE, batches: Iterable[Tensor], *, k: float | None = None) -> ThresholdSAE:
    """Turn a Top-K dictionary into a JumpReLU one with a single threshold at which ``k`` latents fire per row on average.

    The threshold is the quantile of all positive pre-activations over every row given (Llama Scope §3.3.4 takes one batch; many lower
    the variance between documents), read off counts on a logarithmic grid of relative width 1e-4, so memory does not grow with rows.

    Args:
        sae: with unit decoders or not; its pre-activations are compared as they are. batches: raw rows [B, d_in].
        k: target mean L0; the dictionary's own by default.

    Raises:
        UserError: no rows.
    """
    folded = sae.folded()
    target = float(folded.k if k is None else k)
    out = ThresholdSAE(folded.d_in, folded.d_sae, k=round(target), dtype=folded.enc_FD.dtype)
    for name in ("enc_FD", "dec_FD", "b_enc", "b_dec"):
        getattr(out, name).copy_(getattr(folded, name))
    out.metadata = dict(folded.metadata)
    counts, rows = torch.zeros(int((_HIGH - _LOW) / _STEP) + 1, dtype=torch.int64), 0
    for x in batches:
        rows += len(x)
        for part in x.split(ROWS):
            z = out.pre_activations(part)
            places = ((z[z > 0].double().log() - _LOW) / _STEP).long().clamp_(0, len(counts) - 1)
            counts += torch.bincount(places, minlength=len(counts)).cpu()
    if rows == 0:
        raise UserError("no rows to find a threshold on.")
    above = counts.flip(0).cumsum(0).flip(0)  # entries at or above each grid point
    place = int((above > target * rows).sum())  # the lowest grid point that at most target × rows entries reach
    out.threshold_F.fill_(math.exp(_LOW + place * _STEP) if place else 0.0)
    return out.requires_grad_(False).eval()


def read_threshold(cfg: dict[str, Any], tensors: dict[str, Tensor], where: str) -> SAE:
    """The reader of ReLU and JumpReLU folders (SAELens ``standard``, ``jumprelu`` and the transcoders of both).

    Raises:
        CorruptError: tensors of other shapes than promised.
    """
    from sae.folder import check_shapes, dimensions

    d_in, d_sae = dimensions(cfg, where)
    expected: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    if cfg.get("architecture") != "standard":
        expected["threshold"] = (d_sae,)
    skip = "W_skip" in tensors
    if skip:
        expected["W_skip"] = (d_in, d_in)
    check_shapes(tensors, expected, where)
    sae = ThresholdSAE(
        d_in,
        d_sae,
        k=int(cfg.get("metadata", {}).get("k") or 0),
        skip=skip,
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
        if skip and sae.skip_DD is not None:
            sae.skip_DD.copy_(tensors["W_skip"].t())
    if (tensors.get("threshold", torch.zeros(1)) < 0).any():
        raise CorruptError(f"{where}: negative thresholds; a JumpReLU latent opens above zero.")
    return sae
