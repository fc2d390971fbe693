"""Mamba mixers whose forward pass calls its own sub-modules, with the same weights and results as Hugging Face's.

transformers reads the weights of `conv1d` and `dt_proj` instead of calling the modules, so hooks on them never fire,
and its CPU scan keeps every state of a sequence for the backward pass. `repair_mamba` swaps the mixers of a loaded
model in place and makes TransformerLens wrap them with every intermediate quantity hooked (`mamba_bridge.py` and
`recurrent/` list the hook names).

Per layer, with u the first half of in_proj and z the second (Gu & Dao 2023, arXiv 2312.00752):
x = SiLU(conv(u)), (Δ, B, C) = projections of x, h_t = Ā_t h_{t-1} + B̄_t x_t with Ā = exp(ΔA) and B̄ = ΔB,
y = C·h, out = out_proj((y + D x) · SiLU(z)).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.falcon_mamba import modeling_falcon_mamba
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba2 import modeling_mamba2

from workbench.models.scan import selective_scan
from workbench.models.scan_cuda import cuda_scan, cuda_scan_available

ScanArguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x, Δ, A, B, C


class _Mixer(nn.Module):
    """What all mixers share: the causal convolution as a module call, and padding."""

    conv1d: Any
    layer_idx: int
    conv_kernel_size: int
    act: Any

    def _convolve(self, u: Tensor, cache: Any) -> Tensor:
        """SiLU of the causal convolution of u [B,L,D]; with a cache, its last inputs come before."""
        length, u = u.shape[1], u.transpose(1, 2)
        if cache is not None:
            u = cache.update_conv_state(u, self.layer_idx, conv_kernel_size=self.conv_kernel_size)
        return self.act(self.conv1d(u)[..., : u.shape[-1]][..., -length:].transpose(1, 2))

    def _state(self, cache: Any) -> Tensor | None:
        """A copy of the cached state: the cache overwrites its own tensor."""
        state = None if cache is None else cache.get_recurrent_state(self.layer_idx, state_idx=0)
        return None if state is None else state.clone()


class _SelectiveMixer(_Mixer):
    """The forward pass shared by Mamba and FalconMamba (the latter normalises Δ, B and C first)."""

    in_proj: Any
    x_proj: Any
    dt_proj: Any
    out_proj: Any
    dt_layernorm: Any
    b_layernorm: Any
    c_layernorm: Any
    A_log: Any
    D: Any
    time_step_rank: int
    ssm_state_size: int

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """hidden_states [B,L,d_model] -> [B,L,d_model]; `attention_mask` [B,L] is zero at padding."""
        mask = None if attention_mask is None else attention_mask[:, :, None].to(hidden_states.dtype)
        u, gate = self.in_proj(_masked(hidden_states, mask)).chunk(2, -1)
        x = _masked(self._convolve(u, cache_params), mask)
        low_rank, B, C = self.x_proj(x).split([self.time_step_rank, self.ssm_state_size, self.ssm_state_size], -1)
        if hasattr(self, "dt_layernorm"):
            low_rank, B, C = self.dt_layernorm(low_rank), self.b_layernorm(B), self.c_layernorm(C)
        dt = nn.functional.softplus(self.dt_proj(low_rank))
        arguments = (x.float(), dt.float(), -torch.exp(self.A_log.float()), B.float(), C.float())
        y = self._scan(arguments, cache_params) + x * self.D.float()
        return self.out_proj((y * self.act(gate)).to(hidden_states.dtype))

    def _scan(self, arguments: ScanArguments, cache: Any) -> Tensor:
        state = self._state(cache)
        if state is None and cuda_scan_available(arguments[0]):
            y, last = cuda_scan(*arguments)
        else:
            y, last = selective_scan(*arguments, state)
        if cache is not None:
            cache.update_recurrent_state(last, self.layer_idx)
        return y


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


class MambaMixer(_SelectiveMixer, modeling_mamba.MambaMixer):
    """Hugging Face's MambaMixer with hooks that fire and a scan that fits the processor's cache."""


class FalconMambaMixer(_SelectiveMixer, modeling_falcon_mamba.FalconMambaMixer):
    """The same for FalconMamba."""


class Mamba2Mixer(_Mixer, modeling_mamba2.Mamba2Mixer):
    """Hugging Face's Mamba2Mixer, with the convolution called as a module; the chunked scan is Hugging Face's own."""

    def forward(
        self, hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """hidden_states [B,L,d_model] -> [B,L,d_model]; `attention_mask` [B,L] is zero at padding."""
        n_seq, length, _width = hidden_states.shape
        hidden_states = modeling_mamba2.apply_mask_to_padding_states(hidden_states, attention_mask)
        gate, u, dt = self.in_proj(hidden_states).split([self.intermediate_size, self.conv_dim, self.num_heads], -1)
        u = modeling_mamba2.apply_mask_to_padding_states(self._convolve(u, cache_params), attention_mask)
        grouped = self.n_groups * self.ssm_state_size
        x, B, C = u.split([self.intermediate_size, grouped, grouped], -1)
        y, last = modeling_mamba2.mamba2_chunk_scan(
            x.reshape(n_seq, length, self.num_heads, self.head_dim),
            dt,
            -torch.exp(self.A_log.float()),
            B.reshape(n_seq, length, self.n_groups, self.ssm_state_size),
            C.reshape(n_seq, length, self.n_groups, self.ssm_state_size),
            chunk_size=self.chunk_size,
            D=self.D,
            return_final_states=True,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            initial_states=self._state(cache_params),
            dt_limit=self.time_step_limit,
        )
        if cache_params is not None:
            cache_params.update_recurrent_state(last, self.layer_idx)
        return self.out_proj(self.norm(y.reshape(n_seq, length, -1), gate).to(hidden_states.dtype))


_REPAIRED: dict[type, type] = {
    modeling_mamba.MambaMixer: MambaMixer,
    modeling_falcon_mamba.FalconMambaMixer: FalconMambaMixer,
    modeling_mamba2.Mamba2Mixer: Mamba2Mixer,
}


def repair_mamba(hf_model: nn.Module, *, hooks: bool = True) -> nn.Module:
    """Swap every Mamba, FalconMamba or Mamba-2 mixer of `hf_model` in place (same parameters); returns the model.

    With `hooks`, a TransformerBridge built around such a model afterwards offers the hooks of `mamba_bridge.py`;
    without, TransformerLens is not imported. A model without such mixers, or already repaired, is returned as it is.
    `save_pretrained` writes what it always wrote.
    """
    found = False
    for module in hf_model.modules():
        if type(module) in _REPAIRED:
            module.__class__ = _REPAIRED[type(module)]
            found = True
    if found and hooks:
        from workbench.models.mamba_bridge import register_adapters

        register_adapters()
    return hf_model
