"""A dictionary whose latents open at a threshold each (JumpReLU; a ReLU is a threshold of zero).

How Top-K dictionaries become JumpReLU ones (Llama Scope §3.3.4), how other libraries' ReLU and JumpReLU dictionaries live here, and
what a transcoder with a skip connection is. The number of active latents differs from row to row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sae.activation import TopK
from sae.errors import CorruptError, UserError
from sae.model import SAE

ROWS = 1024  # rows encoded at a time: bounds the dense pre-activations
_LOW, _HIGH, _STEP = -28.0, 28.0, 1e-4  # natural logarithms: 7e-13 to 1e12


@dataclass(frozen=True)
class Threshold(TopK):
    """f = z 1[z > threshold], z rectified. ``k`` is the nominal L0 (0: not known)."""

    k: int = 0
    architecture: str = "jumprelu"

    def fold(self, factor_F: Tensor) -> TopK:
        """What is left of any gate once its thresholds are folded (see :meth:`ThresholdSAE.folded`): the thresholds alone."""
        return Threshold(self.k)

    def cfg(self) -> dict[str, Any]:
        """JumpReLU has no entries of its own; thresholds are a tensor."""
        return {}


class ThresholdSAE(SAE):
    """``f = z 1[z > threshold_F]``, ``z = relu((x * scale - b_dec) W_enc + b_enc)``; optionally ``y += x W_skip``.

    Args:
        k: nominal L0, 0 where it is not known. skip: whether there is a skip connection ``skip_DD`` [d_in, d_in] (a transcoder's).
    """

    def __init__(self, d_in: int, d_sae: int, *, k: int = 0, skip: bool = False, dtype: torch.dtype = torch.float32):
        super().__init__(d_in, d_sae, Threshold(k), dtype=dtype)
        self.register_buffer("threshold_F", torch.zeros(d_sae, dtype=dtype))
        self.register_buffer("skip_DD", torch.zeros(d_in, d_in, dtype=dtype) if skip else None)
        self.threshold_F: Tensor
        self.skip_DD: Tensor | None

    def pre_activations(self, x: Tensor) -> Tensor:
        """z [n, F] of raw rows [n, d_in], before threshold and rectifier."""
        return torch.addmm(self.b_enc - self.enc_FD @ self.b_dec, self._rows(x), self.enc_FD.t())

    def encode(self, x: Tensor) -> Tensor:
        """Dense latent activations [..., d_sae] of raw rows [..., d_in]; differentiable where a latent is on."""
        z = self.pre_activations(x.reshape(-1, self.d_in))
        return (z.clamp_min(0) * (z > self.threshold_F)).reshape(*x.shape[:-1], self.d_sae)

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Active latents of each row: (values, indices), both [..., K] with K the fullest row's count; zero means "not active"."""
        parts = [active_entries(self.encode(rows)) for rows in x.reshape(-1, self.d_in).split(ROWS)] or [
            active_entries(self.encode(x.reshape(-1, self.d_in)))
        ]
        width = max(v.shape[1] for v, _ in parts)
        values, indices = (torch.cat([nnf.pad(t, (0, width - t.shape[1])) for t in ts]) for ts in zip(*parts, strict=True))
        return values.reshape(*x.shape[:-1], width), indices.reshape(*x.shape[:-1], width)

    def skip(self, x: Tensor) -> Tensor | None:
        """What the skip connection adds to the reconstruction of raw rows, or None without one."""
        return None if self.skip_DD is None else x.to(self.skip_DD.dtype) @ self.skip_DD

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of raw rows [..., d_in]."""
        y, skip = super().forward(x), self.skip(x)
        return y if skip is None else y + skip

    def extras(self) -> dict[str, Tensor]:
        """Tensors saved beside the four of every dictionary."""
        out = {"threshold": self.threshold_F}
        return out if self.skip_DD is None else out | {"W_skip": self.skip_DD.t()}

    @torch.no_grad()
    def folded(self) -> Self:
        """A copy without a scale; thresholds follow the units of the activations (forgetting them multiplies L0)."""
        s = self.scale_D
        f = s.reciprocal()[0] if bool((s == s[0]).all()) else torch.ones((), dtype=s.dtype)
        out = type(self)(self.d_in, self.d_sae, k=self.k, skip=self.skip_DD is not None, dtype=self.enc_FD.dtype)
        out.enc_FD.copy_(self.enc_FD * s * f)
        out.b_enc.copy_(self.b_enc * f)
        out.dec_FD.copy_(self.dec_FD / s / f)
        out.b_dec.copy_(self.b_dec / s)
        out.threshold_F.copy_(self.threshold_F * f)
        if self.skip_DD is not None and out.skip_DD is not None:
            out.skip_DD.copy_(self.skip_DD)
        out.kind, out.metadata = self.kind, dict(self.metadata)
        return out.to(self.enc_FD.device)


def active_entries(f: Tensor) -> tuple[Tensor, Tensor]:
    """Non-zero entries of dense codes [n, F] as (values, indices) [n, K], latents ascending; K at least 1."""
    width = max(1, int((f > 0).sum(1).max())) if len(f) else 1
    indices = f.detach().topk(width, dim=1).indices.sort(dim=1).values
    return f.gather(1, indices), indices


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
    sae = ThresholdSAE(d_in, d_sae, k=int(cfg.get("metadata", {}).get("k") or 0), skip=skip, dtype=tensors["W_enc"].dtype)
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
