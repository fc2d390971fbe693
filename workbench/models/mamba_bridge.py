"""TransformerLens components that hook every intermediate quantity of a Mamba mixer.

Hook names below `blocks.{l}.mixer.` (B sequences, L positions, D channels, N states per channel, K convolution width):

    hook_in, hook_out          [B,L,d_model]  input and output of the mixer
    conv1d.hook_in             [B,D,L]        convolution input u;  conv1d.hook_out [B,D,L+K-1] before the causal trim
    hook_x, hook_dt            [B,L,D]        x after SiLU, Δ after softplus
    hook_B, hook_C             [B,L,N]
    hook_decay, hook_write     [B,L,D,N]      Ā = exp(ΔA) and B̄x = ΔBx: an edit at a position reaches all later states
    hook_h                     [B,L,D,N]      states: an edited entry is set, later states evolve from it
    hook_y, hook_gate          [B,L,D]        C·h before the skip connection; z before SiLU
    hook_ssm_write, hook_ssm_state  [B,D,L,N] TransformerLens' own names; an edit of the latter changes only the
    read-out

plus TransformerLens' sub-module hooks (in_proj, x_proj, dt_proj, out_proj, each .hook_in and .hook_out).
Hooks on [.., D, N] tensors switch their layer to the slower open scan, so give `run_with_cache` a `names_filter`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import SSMMixerBridge
from transformer_lens.model_bridge.supported_architectures.falcon_mamba import FalconMambaArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.mamba import MambaArchitectureAdapter

_STATE_HOOKS = ("hook_decay", "hook_write", "hook_h", "hook_ssm_write", "hook_ssm_state")


class MambaMixerBridge(SSMMixerBridge):
    """TransformerLens' mixer bridge, over a mixer of `workbench.models.mamba`, with a hook for each quantity."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("x", "dt", "B", "C", "decay", "write", "h", "y", "gate"):
            setattr(self, f"hook_{name}", HookPoint())

    @property
    def wants_states(self) -> bool:
        """Whether a hook reads or edits decays, writes or states."""
        return any(getattr(self, name).has_hooks() for name in _STATE_HOOKS)

    def fire(self, name: str, value: Tensor) -> Tensor:
        """Hand `value` to the hook of that name."""
        if name == "ssm_state":
            return self._channels_first("hook_ssm_state", value)
        value = getattr(self, f"hook_{name}")(value)
        return self._channels_first("hook_ssm_write", value) if name == "write" else value

    def _channels_first(self, hook: str, value: Tensor) -> Tensor:
        point = getattr(self, hook)
        return point(value.transpose(1, 2)).transpose(1, 2) if point.has_hooks() else value

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The wrapped mixer's forward pass, hooked."""
        mixer: Any = self.original_component
        return self.hook_out(mixer(self.hook_in(hidden_states), *args, hooks=self, **kwargs))


def _hook_mixers(adapter: Any) -> None:
    mixer = adapter.component_mapping["blocks"].submodules["mixer"]
    adapter.component_mapping["blocks"].submodules["mixer"] = MambaMixerBridge(
        name=mixer.name, config=mixer.config, submodules=mixer.submodules
    )


class HookedMambaAdapter(MambaArchitectureAdapter):
    """TransformerLens' adapter for Mamba, with `MambaMixerBridge`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        _hook_mixers(self)


class HookedFalconMambaAdapter(FalconMambaArchitectureAdapter):
    """TransformerLens' adapter for FalconMamba, with `MambaMixerBridge`."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        _hook_mixers(self)


def register_adapters() -> None:
    """Let every later TransformerBridge of a (repaired) Mamba use `MambaMixerBridge`."""
    ArchitectureAdapterFactory.register_adapter("MambaForCausalLM", HookedMambaAdapter)
    ArchitectureAdapterFactory.register_adapter("FalconMambaForCausalLM", HookedFalconMambaAdapter)
