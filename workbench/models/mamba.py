"""Mamba mixers whose forward pass calls its own sub-modules, with the same weights and results as Hugging Face's.

transformers reads the weights of `conv1d` and `dt_proj` instead of calling the modules, so hooks on them never fire, and its
CPU scan keeps every state of a sequence for the backward pass. `repair_mamba` swaps the mixers of a loaded model in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.falcon_mamba import modeling_falcon_mamba
from transformers.models.mamba import modeling_mamba

from workbench.models.scan import selective_scan


class _Mixer(nn.Module):
    """The forward pass shared by Mamba and FalconMamba (the latter normalises Δ, B and C first)."""

    in_proj: Any
    conv1d: Any
    x_proj: Any
    dt_proj: Any
    out_proj: Any
    dt_layernorm: Any
    b_layernorm: Any
    c_layernorm: Any
    act: Any
    A_log: Tensor
    D: Tensor
    layer_idx: int
    time_step_rank: int
    ssm_state_size: int
    conv_kernel_size: int

    def forward(self, hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """hidden_states [B,L,d_model] -> [B,L,d_model]; `attention_mask` [B,L] is zero at padding."""
        mask = None if attention_mask is None else attention_mask[:, :, None].to(hidden_states.dtype)
        x, gate = self.in_proj(_masked(hidden_states, mask)).chunk(2, -1)
        x = _masked(self.act(self._convolve(x.transpose(1, 2), cache_params).transpose(1, 2)), mask)
        low_rank, B, C = self.x_proj(x).split([self.time_step_rank, self.ssm_state_size, self.ssm_state_size], -1)
        if hasattr(self, "dt_layernorm"):
            low_rank, B, C = self.dt_layernorm(low_rank), self.b_layernorm(B), self.c_layernorm(C)
        dt = nn.functional.softplus(self.dt_proj(low_rank))
        A = -torch.exp(self.A_log.float())
        y = self._scan(x.float(), dt.float(), A, B.float(), C.float(), cache_params) + x * self.D.float()
        return self.out_proj((y * self.act(gate)).to(hidden_states.dtype))

    def _convolve(self, x: Tensor, cache: Any) -> Tensor:
        """The causal convolution on x [B,D,L]; with a cache, its last inputs come before."""
        length = x.shape[-1]
        if cache is not None:
            x = cache.update_conv_state(x, self.layer_idx, conv_kernel_size=self.conv_kernel_size)
        return self.conv1d(x)[..., : x.shape[-1]][..., -length:]

    def _scan(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, cache: Any) -> Tensor:
        state = None if cache is None else cache.get_recurrent_state(self.layer_idx, state_idx=0)
        y, last = selective_scan(x, dt, A, B, C, None if state is None else state.clone())
        if cache is not None:
            cache.update_recurrent_state(last, self.layer_idx)
        return y


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


class MambaMixer(_Mixer, modeling_mamba.MambaMixer):
    """Hugging Face's MambaMixer with hooks that fire and a scan that fits the cache."""


class FalconMambaMixer(_Mixer, modeling_falcon_mamba.FalconMambaMixer):
    """The same for FalconMamba."""


_REPAIRED = {modeling_mamba.MambaMixer: MambaMixer, modeling_falcon_mamba.FalconMambaMixer: FalconMambaMixer}


def repair_mamba(hf_model: nn.Module) -> nn.Module:
    """Swap every Mamba or FalconMamba mixer of `hf_model` in place (same parameters, same buffers); returns the model.

    A model without such mixers, or already repaired, is returned as it is. `save_pretrained` writes what it always wrote.
    """
    for module in hf_model.modules():
        if type(module) in _REPAIRED:
            module.__class__ = _REPAIRED[type(module)]
    return hf_model
