"""The recurrence position by position, with every decay, write and state in the open for hooks that read or edit them.

Slower than a layer's own scan and equal to it to rounding; differentiable in every factor. States exist for one block
of positions at a time unless a hook asks for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.models.recurrent.factors import Factors, advance, outer

MOST_BYTES = 4 << 30  # of one tensor of states that a hook may ask for
_BLOCK = 32


class Fire(Protocol):
    """Hands values to the hooks of a layer."""

    where: str

    def asks(self, name: str) -> bool:
        """Whether a hook of that name reads or edits."""

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """The value, possibly edited; itself where there is no such hook."""


@dataclass(frozen=True)
class Watch:
    """``call(start, states [B,≤size,H,K,V])`` for every block of positions; a tensor it returns replaces the states."""

    call: Callable[[int, Tensor], Tensor | None]
    size: int


def open_scan(f: Factors, fire: Fire, watch: Watch | None = None) -> Tensor:
    """y [B,T,H,V] of the factors; hooks ``decay``, ``write``, ``state``, ``carried`` fire.

    Raises:
        UsageError: all states that a hook asks for would take more than ``MOST_BYTES``, or are read in blocks too.
    """
    n, length, heads, keys, values = f.shape
    whole = fire.asks("state") or fire.asks("carried")
    if whole and watch is not None:
        raise UsageError(
            f"states of {fire.where} are read in blocks (in_blocks); take the hook on 'state' or 'carried' off"
            " meanwhile."
        )
    if whole or fire.asks("write"):
        _refuse_large(fire.where, f.write_key.element_size() * n * length * heads * keys * values)
    decay = fire("decay", f.decay())
    writes = fire("write", outer(f.write_key, f.write_value)) if fire.asks("write") else None
    erases = f.erase_key is not None and f.erase_strength is not None

    def step(state: Tensor, t: int) -> Tensor:
        write = outer(f.write_key[:, t], f.write_value[:, t]) if writes is None else writes[:, t]
        if not erases:
            return advance(state, decay[:, t], write)
        return advance(state, decay[:, t], write, f.erase_key[:, t], f.erase_strength[:, t])  # type: ignore[index]

    def block(start: int, stop: int, state: Tensor, edited: Tensor | None, changed: Tensor | None) -> Tensor:
        states = []
        for t in range(start, stop):
            state = step(state, t)
            if edited is not None and changed is not None:
                state = torch.where(changed[:, t - start], edited[:, t - start], state)
            states.append(state)
        return torch.stack(states, 1)

    state, out = f.write_value.new_zeros(n, heads, keys, values), []
    size = length if whole else watch.size if watch is not None else _BLOCK
    for start in range(0, length, size):
        stop = min(start + size, length)
        states = block(start, stop, state, None, None)
        edited: Tensor | None = None
        if whole:
            edited = fire("state", states.clone())
        elif watch is not None:
            edited = watch.call(start, states.clone())
        if edited is not None:
            changed = edited != states
            if bool(changed.any()):
                states = block(start, stop, state, edited, changed)
            elif edited.requires_grad:
                states = edited  # the same numbers, and gradients reach what a hook put in
        state = states[:, -1]
        out.append(torch.einsum("bthk,bthkv->bthv", f.read[:, start:stop], fire("carried", states)))
    return torch.cat(out, 1)


def _refuse_large(where: str, size: int) -> None:
    if size > MOST_BYTES:
        raise UsageError(
            f"all states of {where} would take {size / 2**30:.1f} GiB, more than {MOST_BYTES / 2**30:.0f}: read fewer"
            " sequences at a time, or states in blocks of positions (RecurrentLayer.in_blocks)."
        )
