"""Mamba-2 (Dao & Gu 2024, arXiv 2405.21060) and its kin in Bamba, Granite-4-H, Zamba2, Nemotron-H and Falcon-H1: heads
that decay as one, keys and reads shared by the heads of a group.

(z, x B C, Δ) = in_proj; x, B, C behind one convolution; S_t = exp(Δ_t A) S_{t-1} + B_t (Δ_t x_t)ᵀ; y = Cᵀ S + D x;
out = out_proj(norm(y, z)).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.models.recurrent.factors import Factors, Projected
from workbench.models.recurrent.kind import Own, gained, has, single


class Mamba2:
    """The kind of layer of Mamba-2."""

    name = "Mamba-2"
    masks_convolved = True

    def made_of(self, module: Any) -> bool:
        """By its parts."""
        parts = ("in_proj", "conv1d", "dt_bias", "A_log", "D", "out_proj", "n_groups", "num_heads", "ssm_state_size")
        return has(module, *parts) and module.A_log.dim() == 1

    def shape(self, mixer: Any) -> tuple[int, int, int]:
        """(heads, states N, head dim P)."""
        return int(mixer.num_heads), int(mixer.ssm_state_size), int(mixer.head_dim)

    def project(self, mixer: Any, x: Tensor, own: Own) -> Projected:
        """(x B C), the gate z, and Δ before bias and softplus; Falcon-H1 scales what goes in and what comes out."""
        scaled = x * mixer.ssm_in_multiplier if has(mixer, "ssm_in_multiplier") else x
        made = mixer.in_proj(scaled)
        made = made * mixer.mup_vector if has(mixer, "mup_vector") else made
        gate, u, dt = made.split([mixer.intermediate_size, mixer.conv_dim, mixer.num_heads], -1)
        return Projected(u, gate, (dt,))

    def factors(self, mixer: Any, convolved: Tensor, projected: Projected, own: Own) -> Factors:
        """Keys and reads once per head."""
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

        heads, states, width = self.shape(mixer)
        grouped = mixer.n_groups * states
        x, B, C = convolved.split([mixer.intermediate_size, grouped, grouped], -1)
        x, B, C = x.unflatten(-1, (heads, width)), B.unflatten(-1, (-1, states)), C.unflatten(-1, (-1, states))
        raw = projected.rest[0]
        low, high = mixer.time_step_limit
        dt = torch.nn.functional.softplus(raw + mixer.dt_bias.to(raw.dtype)).clamp(low, high)
        A, dt = -torch.exp(single(mixer.A_log)), own("strength", single(dt))

        def fused() -> Tensor:
            return mamba2_chunk_scan(x, dt, A, B, C, chunk_size=mixer.chunk_size)

        def per_head(v: Tensor) -> Tensor:
            return single(v).repeat_interleave(heads // v.shape[2], 2)

        return Factors(
            read=per_head(C),
            write_key=per_head(B),
            write_value=dt[..., None] * single(x),
            decay=lambda: torch.exp(dt * A)[..., None, None],
            fused=fused,
            skip=single(x) * single(mixer.D)[:, None],
            gate=projected.gate,
            strength=dt[..., None],
        )

    def finish(self, mixer: Any, y: Tensor, f: Factors, own: Own) -> Tensor:
        """Skip connection, gated norm (Falcon-H1 may leave it out) and output projection."""
        y, dtype = (y + f.skip).flatten(2), f.gate.dtype  # type: ignore[operator]

        def normed(y: Tensor) -> Tensor:
            plain = getattr(mixer, "mamba_rms_norm", True) is False
            return y * torch.nn.functional.silu(f.gate) if plain else mixer.norm(y, f.gate)

        return mixer.out_proj(gained(own, y, normed).to(dtype))
