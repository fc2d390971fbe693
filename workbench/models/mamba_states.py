"""The selective scan with every decay, write and state in the open, for hooks that read or edit them.

Slower and larger than `scan.selective_scan` ([B,L,D,N] tensors exist), equal to it to rounding; used only while a hook
asks. Axis suffixes: B sequences, L positions, D channels, N states per channel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Fire = Callable[[str, Tensor], Tensor]


def hooked_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None, fire: Fire
) -> tuple[Tensor, Tensor]:
    """Arguments and results of `selective_scan`; `fire(name, value)` is called for "decay", "write", "h" and
    "ssm_state".

    An edit of "decay" or "write" at a position changes every later state. An edit of "h" replaces the edited entries
    and propagates too: later states evolve from the replaced ones. An edit of "ssm_state" changes only what is read
    out.
    """
    decay = fire("decay", torch.exp(dt[..., None] * A))
    write = fire("write", (dt * x)[..., None] * B[:, :, None, :])
    h = linear_recurrence(decay, write, initial_state)
    edited = fire("h", h.clone())
    changed = edited != h
    if bool(changed.any()):
        h = linear_recurrence(decay.masked_fill(changed, 0.0), torch.where(changed, edited, write), initial_state)
    read = fire("ssm_state", h)
    return torch.einsum("bldn,bln->bld", read, C), h[:, -1]


def linear_recurrence(decay: Tensor, write: Tensor, initial_state: Tensor | None = None) -> Tensor:
    """h_t = decay_t h_{t-1} + write_t along axis 1 of [B,L,D,N] tensors; all states [B,L,D,N]."""
    if torch.is_grad_enabled() and (decay.requires_grad or write.requires_grad):
        state = torch.zeros_like(write[:, 0]) if initial_state is None else initial_state
        states = []
        for t in range(write.shape[1]):
            state = torch.addcmul(write[:, t], decay[:, t], state)
            states.append(state)
        return torch.stack(states, 1)
    h = write.clone()
    if initial_state is not None:
        h[:, 0].addcmul_(decay[:, 0], initial_state)
    for t in range(1, h.shape[1]):
        h[:, t].addcmul_(decay[:, t], h[:, t - 1])
    return h
