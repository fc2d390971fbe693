"""Mamba (Gu & Dao 2023, arXiv 2312.00752), FalconMamba and Jamba's mixer: one head whose every entry decays by itself.

x = SiLU(conv(u)), (Δ, B, C) = projections of x (FalconMamba and Jamba normalise them), h_t = exp(Δ_t A) h_{t-1} + Δ_t
B_t x_t, y = C·h, out = out_proj((y + D x) · SiLU(z)). Here the state is h transposed: keys are the N states of a
channel, values the D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.models.recurrent.factors import Factors, Projected
from workbench.models.recurrent.kind import Own, has, single
from workbench.models.scan import selective_scan
from workbench.models.scan_cuda import cuda_scan, cuda_scan_available


class Mamba1:
    """The kind of layer of Mamba, FalconMamba and Jamba."""

    name = "Mamba"
    masks_convolved = True

    def made_of(self, module: Any) -> bool:
        """By its parts."""
        return (
            has(module, "in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "D", "out_proj") and module.A_log.dim() == 2
        )

    def shape(self, mixer: Any) -> tuple[int, int, int]:
        """(1, states N, channels D)."""
        channels, states = mixer.A_log.shape
        return 1, int(states), int(channels)

    def project(self, mixer: Any, x: Tensor, own: Own) -> Projected:
        """u and the gate z."""
        u, gate = mixer.in_proj(x).chunk(2, -1)
        return Projected(u, own("gate", gate))

    def factors(self, mixer: Any, convolved: Tensor, projected: Projected, own: Own) -> Factors:
        """Hooks ``x``, ``dt``, ``B``, ``C`` of the mixer fire on the way."""
        x = own("x", convolved)
        states = self.shape(mixer)[1]
        low_rank, B, C = mixer.x_proj(x).split([mixer.time_step_rank, states, states], -1)
        if has(mixer, "dt_layernorm"):
            low_rank, B, C = mixer.dt_layernorm(low_rank), mixer.b_layernorm(B), mixer.c_layernorm(C)
        dt = own("strength", own("dt", torch.nn.functional.softplus(mixer.dt_proj(low_rank))))
        B, C = own("B", B), own("C", C)
        x, dt, B, C = single(x), single(dt), single(B), single(C)
        A = -torch.exp(single(mixer.A_log))

        def fused() -> Tensor:
            scan = cuda_scan if cuda_scan_available(x) else selective_scan
            return scan(x, dt, A, B, C)[0][:, :, None]

        return Factors(
            read=C[:, :, None],
            write_key=B[:, :, None],
            write_value=(dt * x)[:, :, None],
            decay=lambda: torch.exp(dt[:, :, None, None] * A.t()),
            fused=fused,
            skip=(x * single(mixer.D))[:, :, None],
            gate=projected.gate,
            strength=dt[:, :, None],
        )

    def finish(self, mixer: Any, y: Tensor, f: Factors, own: Own) -> Tensor:
        """Skip connection, gate and output projection; hook ``y`` of the mixer fires."""
        y = own("y", y[:, :, 0]) + f.skip[:, :, 0]  # type: ignore[index]
        return mixer.out_proj((y * own("gain", mixer.act(f.gate))).to(f.gate.dtype))
