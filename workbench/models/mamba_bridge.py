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

from workbench.models.recurrent.hooks import Recurrence, RecurrentMixer
from workbench.models.recurrent.mamba1 import Mamba1

_LARGE = {"decay": ("decay",), "write": ("write", "ssm_write"), "state": ("h",), "carried": ("ssm_state",)}


class MambaMixerBridge(RecurrentMixer, SSMMixerBridge):
    """TransformerLens' mixer bridge with a hook for each quantity, and those of every recurrent layer
    (:mod:`workbench.models.recurrent`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("x", "dt", "B", "C", "decay", "write", "h", "y", "gate"):
            setattr(self, f"hook_{name}", HookPoint())
        self.recurrence = Recurrence(Mamba1())

    def scan_hooks(self) -> _BothNames:
        """Hooks of the open scan under both names."""
        return _BothNames(self)


class _BothNames:
    """The hooks of every recurrent layer, then a Mamba's own, whose states are [B,L,D,N]."""

    def __init__(self, mixer: MambaMixerBridge):
        self.mixer, self.where = mixer, mixer.recurrence.where

    def asks(self, name: str) -> bool:
        """Whether a hook of either name reads or edits."""
        own = (getattr(self.mixer, f"hook_{n}") for n in _LARGE.get(name, ()))
        return self.mixer.recurrence.asks(name) or any(point.has_hooks() for point in own)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """The value as the hooks leave it."""
        value = self.mixer.recurrence(name, value)
        if name == "decay":
            return self._own("decay", value)
        if name == "write":
            return self._own("ssm_write", self._own("write", value), channels_first=True)
        if name == "state":
            return self._own("h", value)
        return self._own("ssm_state", value, channels_first=True) if name == "carried" else value

    def _own(self, name: str, value: Tensor, channels_first: bool = False) -> Tensor:
        """[B,L,1,N,D] as a hook on [B,L,D,N] (or [B,D,L,N]) leaves it."""
        point = getattr(self.mixer, f"hook_{name}")
        if not point.has_hooks():
            return value
        shown = value.squeeze(2)
        back = point(shown.permute(0, 3, 1, 2) if channels_first else shown.transpose(-1, -2))
        back = back.permute(0, 2, 3, 1) if channels_first else back.transpose(-1, -2)
        return back[:, :, None]


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
