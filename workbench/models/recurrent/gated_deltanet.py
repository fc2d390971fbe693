"""Gated delta nets (Yang et al. 2024, arXiv 2412.06464) as Qwen3-Next, Qwen3.5 and OLMo Hybrid have them: what a key
already holds is erased, in part, before the new value is written there.

S_t = α_t (I - β_t k kᵀ) S_{t-1} + k (β_t v)ᵀ, o = Sᵀ q, with k and q of unit length (q divided by √K), α =
exp(-exp(A_log) softplus(a + dt_bias)), β = sigmoid(b) (OLMo Hybrid: up to 2); out = out_proj(norm(o, z)).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.models.recurrent.factors import Factors, Projected
from workbench.models.recurrent.kind import Own, gained, has, single

_LAYOUTS = (
    ("in_proj_qkvz", "in_proj_ba", "norm", "out_proj"),
    ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "norm", "out_proj"),
    ("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj", "o_norm", "o_proj"),
)


class GatedDeltaNet:
    """The kind of layer of gated delta nets."""

    name = "gated delta net"
    masks_convolved = False

    def made_of(self, module: Any) -> bool:
        """By its parts."""
        parts = ("conv1d", "A_log", "dt_bias", "head_k_dim", "head_v_dim", "num_k_heads", "num_v_heads")
        return has(module, *parts) and any(has(module, *layout) for layout in _LAYOUTS)

    def shape(self, mixer: Any) -> tuple[int, int, int]:
        """(value heads, key dim, value dim)."""
        return int(mixer.num_v_heads), int(mixer.head_k_dim), int(mixer.head_v_dim)

    def project(self, mixer: Any, x: Tensor, own: Own) -> Projected:
        """q, k, v side by side; the gate z [B,T,H,V]; b and a [B,T,H]."""
        heads, _, width = self.shape(mixer)
        if has(mixer, "in_proj_qkvz"):
            q, k, v, z, b, a = mixer.fix_query_key_value_ordering(mixer.in_proj_qkvz(x), mixer.in_proj_ba(x))
            made = torch.cat([w.flatten(2) for w in (q, k, v)], -1)
        elif has(mixer, "in_proj_qkv"):
            made, z, b, a = mixer.in_proj_qkv(x), mixer.in_proj_z(x), mixer.in_proj_b(x), mixer.in_proj_a(x)
        else:
            made = torch.cat([mixer.q_proj(x), mixer.k_proj(x), mixer.v_proj(x)], -1)
            z, b, a = mixer.g_proj(x), mixer.b_proj(x), mixer.a_proj(x)
        parts = [own(f"{n}_pre_conv", p).flatten(2) for n, p in zip("qkv", self._split(mixer, made), strict=True)]
        return Projected(torch.cat(parts, -1), z.reshape(*x.shape[:2], heads, width), (own("beta_logit", b), a))

    def factors(self, mixer: Any, convolved: Tensor, projected: Projected, own: Own) -> Factors:
        """Keys and reads of unit length, once per value head."""
        from transformers.models.qwen3_next.modeling_qwen3_next import l2norm, torch_chunk_gated_delta_rule

        heads, width, _ = self.shape(mixer)
        q, k, v = (own(n, p) for n, p in zip("qkv", self._split(mixer, convolved), strict=True))
        b, a = projected.rest
        beta = own("beta", b.sigmoid() * (2.0 if getattr(mixer, "allow_neg_eigval", False) else 1.0))
        log_decay = own(
            "log_decay",
            -torch.exp(single(mixer.A_log)) * torch.nn.functional.softplus(single(a) + single(mixer.dt_bias)),
        )
        beta, value = own("strength", single(beta)), single(v)
        query, key = (l2norm(single(p).repeat_interleave(heads // p.shape[2], 2), dim=-1, eps=1e-6) for p in (q, k))

        def fused() -> Tensor:
            return torch_chunk_gated_delta_rule(query, key, value, g=log_decay, beta=beta)[0]

        return Factors(
            read=query * width**-0.5,
            write_key=key,
            write_value=beta[..., None] * value,
            decay=lambda: torch.exp(log_decay)[..., None, None],
            fused=fused,
            skip=None,
            gate=projected.gate,
            strength=beta[..., None],
            erase_key=key,
            erase_strength=beta,
        )

    def finish(self, mixer: Any, y: Tensor, f: Factors, own: Own) -> Tensor:
        """Gated norm and output projection."""
        y, gate = own("recurrence_out", y.to(f.gate.dtype)), own("gate_input", f.gate)
        norm, project = (mixer.o_norm, mixer.o_proj) if has(mixer, "o_norm") else (mixer.norm, mixer.out_proj)
        y = gained(own, y, lambda y: norm(y.flatten(0, 2), gate.flatten(0, 2)).reshape(y.shape))
        return project(y.flatten(2))

    def _split(self, mixer: Any, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q and k [B,T,key heads,K], v [B,T,heads,V]."""
        keys, values = mixer.num_k_heads * mixer.head_k_dim, mixer.num_v_heads * mixer.head_v_dim
        q, k, v = made.split([keys, keys, values], -1)
        return (
            q.unflatten(-1, (-1, mixer.head_k_dim)),
            k.unflatten(-1, (-1, mixer.head_k_dim)),
            v.unflatten(-1, (-1, mixer.head_v_dim)),
        )
