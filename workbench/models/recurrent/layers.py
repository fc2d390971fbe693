"""The recurrent layers of a loaded model, and their states at chosen positions in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.models.recurrent.factors import Factors
from workbench.models.recurrent.hooks import MIXERS
from workbench.models.recurrent.kind import activate, convolution_of, silent
from workbench.models.recurrent.open_scan import Watch


@dataclass(frozen=True)
class RecurrentLayer:
    """One recurrent layer.

    Attributes:
        index: its block. kind: ``Mamba``, ``Mamba-2``, ``gated delta net`` or ``short convolution``. path:
            ``blocks.3.linear_attn``.
        heads, keys, values: H, K, V of its state. width: taps of its convolution.
    """

    index: int
    kind: str
    path: str
    heads: int
    keys: int
    values: int
    width: int
    component: Any

    def hook(self, name: str) -> str:
        """The whole name of one of its hooks: ``layer.hook("write_key")``."""
        if f"hook_{name}" not in self.component.recurrence._modules:
            have = ", ".join(n.removeprefix("hook_") for n in self.component.recurrence._modules)
            raise UsageError(f"a {self.kind} layer has no hook {name!r} ({have})")
        return f"{self.path}.recurrence.hook_{name}"

    @property
    def branch(self) -> str:
        """The hook of its output [B,T,d_model]."""
        return f"{self.path}.hook_out"

    @property
    def erases(self) -> bool:
        """Whether something is erased before a write."""
        return "hook_erase_key" in self.component.recurrence._modules

    @property
    def curved(self) -> bool:
        """Whether a nonlinearity stands behind its convolution: what it gives is then no sum of what it reads."""
        mixer = self.component.original_component
        return getattr(mixer, "act", None) is not None or getattr(mixer, "activation", None) is not None

    @property
    def taps(self) -> Tensor:
        """[C, width] weights of its convolution; the last column reads the position itself."""
        return convolution_of(self.component.original_component).weight[:, 0]

    @property
    def conv_bias(self) -> Tensor | None:
        """[C] what its convolution adds; None without."""
        return convolution_of(self.component.original_component).bias

    @contextmanager
    def in_blocks(self, call: Callable[[int, Tensor], Tensor | None], size: int = 32) -> Iterator[None]:
        """While open, ``call(start, states [B,≤size,H,K,V])`` sees all states of every pass, block by block; what it
        returns goes on from there.
        """
        if size < 1:
            raise UsageError(f"size = {size}: a block has at least one position. Give 1 or more.")
        recurrence, before = self.component.recurrence, self.component.recurrence.watch
        if before is not None:
            raise UsageError(f"states of {self.path} are already read in blocks. Leave the outer in_blocks first.")
        recurrence.watch = Watch(call, size)
        try:
            yield
        finally:
            recurrence.watch = before

    def factors_of(self, x: Tensor, conv: Tensor) -> Factors:
        """The terms of the recurrence for the mixer's input x [B,T,d_model] and the convolution's output ``conv``
        [B,T,C] before its nonlinearity (hook ``conv``), without hooks.
        """
        kind, mixer = self.component.recurrence.kind, self.component.original_component
        return kind.factors(mixer, activate(mixer, conv), kind.project(mixer, x, silent), silent)


def recurrent_layers(model: Any) -> list[RecurrentLayer]:
    """All recurrent layers of a bridge whose states are shown, in order; empty for a Transformer."""
    found = []
    for i, block in enumerate(model.blocks):
        for name in MIXERS:
            component = block._modules.get(name)
            if component is None or not hasattr(component, "recurrence"):
                continue
            kind, mixer = component.recurrence.kind, component.original_component
            heads, keys, values = kind.shape(mixer)
            width = int(convolution_of(mixer).weight.shape[-1])
            path = f"blocks.{i}.{name}"
            found.append(RecurrentLayer(i, kind.name, path, heads, keys, values, width, component))
    return found


def states_at(model: Any, layer: RecurrentLayer, tokens: Tensor, positions: Tensor, size: int = 32) -> Tensor:
    """States [B,O,H,K,V] of a layer after the writes at ``positions`` [B,O] of tokens [B,T]; never all are held."""
    return states_of(model, [layer], tokens, positions, size)[layer.index]


@torch.no_grad()
def states_of(
    model: Any, layers: Sequence[RecurrentLayer], tokens: Tensor, positions: Tensor, size: int = 32, batch: int = 16
) -> dict[int, Tensor]:
    """:func:`states_at` for several layers at once, by index of the layer, ``batch`` sequences at a time."""
    out: dict[int, list[Tensor]] = {layer.index: [] for layer in layers}
    for start in range(0, len(tokens), batch):
        at = positions[start : start + batch]
        with ExitStack() as stack:
            for layer in layers:
                kept = torch.zeros(*at.shape, layer.heads, layer.keys, layer.values, device=tokens.device)
                out[layer.index].append(kept)
                stack.enter_context(layer.in_blocks(partial(_keep, kept, at), size))
            model(tokens[start : start + batch], use_cache=False)
    return {index: torch.cat(parts) for index, parts in out.items()}


def _keep(kept: Tensor, positions: Tensor, start: int, states: Tensor) -> None:
    """Put the states of one block that are at ``positions`` [B,O] where they belong."""
    inside = (positions >= start) & (positions < start + states.shape[1])
    rows, columns = inside.nonzero(as_tuple=True)
    kept[rows, columns] = states[rows, positions[rows, columns] - start].to(kept.dtype)
