"""The gated short convolution of LFM2 (Liquid AI 2025): between two gates a causal convolution alone carries something
from one position to the next.

(b, c, x) = in_proj; w = conv(b ∘ x); y = w; out = out_proj(c ∘ y). As a recurrence it writes w and forgets it at the
next position: one head, one key, a decay of nothing. What earlier positions give comes through the convolution's taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.models.recurrent.factors import Factors, Projected
from workbench.models.recurrent.kind import Own, has, single


class ShortConvolution:
    """The kind of layer of LFM2's convolution blocks."""

    name = "short convolution"
    masks_convolved = False

    def made_of(self, module: Any) -> bool:
        """By its parts."""
        return has(module, "conv", "in_proj", "out_proj", "conv_kernel_size")

    def shape(self, mixer: Any) -> tuple[int, int, int]:
        """(1, 1, channels)."""
        return 1, 1, int(mixer.conv.weight.shape[0])

    def project(self, mixer: Any, x: Tensor, own: Own) -> Projected:
        """What the convolution reads, behind its first gate; the second gate."""
        before, after, u = mixer.in_proj(x).chunk(3, -1)
        return Projected(own("strength", before) * u, after)

    def factors(self, mixer: Any, convolved: Tensor, projected: Projected, own: Own) -> Factors:
        """A write of the convolution's output that is read at once and gone."""
        value = single(convolved)[:, :, None]
        one = torch.ones_like(value[..., :1])
        return Factors(
            read=one,
            write_key=one.clone(),
            write_value=value,
            decay=lambda: torch.zeros_like(one)[..., None],
            fused=lambda: value,
            skip=None,
            gate=projected.gate,
            strength=torch.ones_like(one),
        )

    def finish(self, mixer: Any, y: Tensor, f: Factors, own: Own) -> Tensor:
        """Second gate and output projection."""
        return mixer.out_proj(own("gain", f.gate) * y[:, :, 0].to(f.gate.dtype))
