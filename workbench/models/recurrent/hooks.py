"""The hooks of a recurrent layer on TransformerLens' component for its mixer, and the forward pass that fires them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from workbench.models.recurrent.factors import SMALL
from workbench.models.recurrent.kind import Kind, Own, activate, convolve
from workbench.models.recurrent.kinds import kind_of
from workbench.models.recurrent.open_scan import Watch, open_scan

MIXERS = ("mixer", "mamba", "linear_attn", "ssm", "conv")  # TransformerLens' names for a block's recurrent mixer
_LARGE = ("decay", "write", "state", "carried")
_OWN = ("strength", "log_decay", "gain")  # of a kind's own formulas
_NAMES = ("conv_in", "conv", *SMALL, "y", *_OWN, *_LARGE)
_ERASING = ("erase_key", "erase_strength", "log_decay")  # hooks of gated delta nets alone
# share of the largest output by which this program's pass may differ from the module's own, in single precision or not
_SAME, _SAME_HALF = 1e-3, 5e-2
_PROBE = 5


class Recurrence(nn.Module):
    """The hook points of one layer; ``watch`` reads states block by block."""

    def __init__(self, kind: Kind):
        super().__init__()
        self.kind = kind
        self.watch: Watch | None = None
        names = [n for n in _NAMES if kind.name == "gated delta net" or n not in _ERASING]
        for name in names:
            self.add_module(f"hook_{name}", HookPoint())

    @property
    def where(self) -> str:
        """The layer, as its hooks are called."""
        return str(self.hook_state.name or "a layer").removesuffix(".hook_state")  # type: ignore[union-attr]

    def asks(self, name: str) -> bool:
        """Whether a hook of that name reads or edits."""
        return bool(getattr(self, f"hook_{name}").has_hooks())

    def __call__(self, name: str, value: Tensor) -> Tensor:  # type: ignore[override]
        """The value as the hook of that name leaves it."""
        point = self._modules.get(f"hook_{name}")
        return value if point is None else point(value)


class RecurrentMixer:
    """Put before a TransformerLens component: its forward pass runs the layer with every hook."""

    recurrence: Recurrence

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """[B,T,d_model] -> [B,T,d_model]; the component's own pass where a cache continues a text."""
        cached = any(kwargs.get(name) is not None for name in ("cache_params", "past_key_values"))
        if cached or getattr(self, "eager_scan", False):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        x = args[0] if args else kwargs["hidden_states"]
        mask = kwargs.get("attention_mask")
        return self.hook_out(run(self.recurrence.kind, self.original_component, self.hook_in(x), mask, self))  # type: ignore[attr-defined]

    @property
    def own(self) -> Own:
        """What a kind's formulas hand their values to."""
        return _Own(self)

    def scan_hooks(self) -> Any:
        """What the open scan hands its values to."""
        return self.recurrence


class _Own:
    """Hooks of a component's own names, and the recurrence's of :data:`_OWN`."""

    def __init__(self, component: RecurrentMixer):
        self.component = component

    def _points(self, name: str) -> list[HookPoint]:
        own = self.component._modules.get(f"hook_{name}")  # type: ignore[attr-defined]
        ours = self.component.recurrence._modules.get(f"hook_{name}") if name in _OWN else None
        return [point for point in (own, ours) if isinstance(point, HookPoint)]

    def asks(self, name: str) -> bool:
        """Whether one of the hooks of that name reads or edits."""
        return any(point.has_hooks() for point in self._points(name))

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """The value as they leave it."""
        for point in self._points(name):
            value = point(value)
        return value


def run(kind: Kind, mixer: Any, x: Tensor, mask: Tensor | None, component: RecurrentMixer) -> Tensor:
    """The layer's output [B,T,d_model]; ``mask`` [B,T] is zero at padding."""
    fire = component.scan_hooks()
    projected = kind.project(mixer, _masked(x, mask), component.own)
    convolved = activate(mixer, fire("conv", convolve(mixer, fire("conv_in", projected.conv_in))))
    f = kind.factors(mixer, _masked(convolved, mask if kind.masks_convolved else None), projected, component.own)
    given = {name: value for name in SMALL if (value := getattr(f, name)) is not None}
    before = {name: _version(value) for name, value in given.items()}
    fired = {name: fire(name, value) for name, value in given.items()}
    edited = any(
        fired[name] is not value or (before[name] != _version(value) if before[name] is not None else fire.asks(name))
        for name, value in given.items()
    )
    watch = component.recurrence.watch
    if edited or watch is not None or any(fire.asks(name) for name in _LARGE):
        y = open_scan(replace(f, **fired), fire, watch)
    else:
        y = f.fused()
    return kind.finish(mixer, fire("y", y), f, component.own)


def _version(value: Tensor) -> int | None:
    """A number that rises where the tensor is changed in place; None where torch keeps none (inference mode)."""
    return None if value.is_inference() else value._version


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else (x * mask[:, :, None]).to(x.dtype)


def attach(model: Any) -> None:
    """Give every recurrent mixer of a bridge these hooks, once: those whose kind is known and whose output this
    program's pass computes as the module itself does.
    """
    found = False
    for block in model.blocks:
        for name in MIXERS:
            component = block._modules.get(name)
            if component is None or hasattr(component, "recurrence"):
                continue
            kind = kind_of(component.original_component)
            if kind is not None and _agrees(kind, component, model):
                _put(component, kind)
                found = True
    if found:
        before = frozenset(model._hook_registry)
        model._scan_existing_hooks(model, "")
        driver = model._driver
        if driver.supported_hook_points:
            driver.supported_hook_points = driver.supported_hook_points | (frozenset(model._hook_registry) - before)


def _put(component: Any, kind: Kind) -> None:
    base = type(component)
    component.__class__ = type(f"Recurrent{base.__name__}", (RecurrentMixer, base), {})
    component.add_module("recurrence", Recurrence(kind))


class _Silent(RecurrentMixer):
    """A pass without hooks."""

    def __init__(self, kind: Kind):
        self.recurrence = Recurrence(kind)
        self._modules: dict[str, Any] = {}


@torch.no_grad()
def _agrees(kind: Kind, component: Any, model: Any) -> bool:
    """Whether this program's pass gives what the module gives, on a few made-up rows."""
    at = next(component.parameters())
    if at.is_meta:
        return True
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, _PROBE, int(model.cfg.d_model), generator=generator).to(at)
    theirs = component.original_component(x)
    ours = run(kind, component.original_component, x, None, _Silent(kind))
    most = _SAME if at.dtype in (torch.float32, torch.float64) else _SAME_HALF
    return bool((ours - theirs).abs().max() <= most * theirs.abs().max())
