"""Exact sums over a recurrence whose factors are known: states, what is read of each write, how long a write lives.

All of it is linear in the state: S_T = Σ_j T_T ⋯ T_{j+1} (k_j v_jᵀ), T_t being decay and erasure at t. Axes: B
sequences, T positions, H heads, K keys, V values; R is 1 where a head decays as one, else V.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workbench.models.recurrent.factors import Factors, advance, outer


def decays(f: Factors) -> Tensor:
    """[B,T,H,1|K,1|V]."""
    return f.decay()


def transition(f: Factors, state: Tensor, t: int, decay: Tensor) -> Tensor:
    """What becomes of a state [B,...,H,K,V] (or of keys [B,...,H,K,R]) at position t, nothing being written."""
    extra = state.dim() - decay[:, t].dim()
    at = decay[:, t].reshape(len(state), *[1] * extra, *decay.shape[2:])
    if f.erase_key is None or f.erase_strength is None:
        return at * state
    key, strength = f.erase_key[:, t], f.erase_strength[:, t]
    key = key.reshape(len(state), *[1] * extra, *key.shape[1:]).expand(*state.shape[:-1])
    strength = strength.reshape(len(state), *[1] * extra, *strength.shape[1:])
    return advance(state, at, None, key, strength)


def states_after(f: Factors, positions: Tensor) -> Tensor:
    """States [B,O,H,K,V] after the writes at ``positions`` [B,O]; zeros where a position is before the first."""
    n, length, heads, keys, values = f.shape
    decay = decays(f)
    state = f.write_value.new_zeros(n, heads, keys, values)
    out = state.new_zeros(n, positions.shape[1], heads, keys, values)
    for t in range(length):
        state = transition(f, state, t, decay) + outer(f.write_key[:, t], f.write_value[:, t])
        rows, columns = (positions == t).nonzero(as_tuple=True)
        out[rows, columns] = state[rows]
    return out


def reads_from(f: Factors, at: int = -1) -> Tensor:
    """[B,T,H,K,R]: what the read at position ``at`` takes of a change of the state after each position: y_at = Σ_j
    reads_j · (k_j v_jᵀ); zeros behind ``at``.
    """
    n, length, heads, keys, _ = f.shape
    at, decay = at % length, decays(f)
    width = decay.shape[-1]
    read = f.read[:, at, :, :, None].expand(n, heads, keys, width)
    out = [torch.zeros_like(read)] * (length - at - 1)
    for t in range(at, -1, -1):
        out.append(read)
        if f.erase_key is not None and f.erase_strength is not None:
            key = f.erase_key[:, t]
            seen = torch.einsum("bhk,bhkr->bhr", key, read)
            read = read - (f.erase_strength[:, t, :, None] * key)[..., None] * seen[:, :, None]
        read = decay[:, t] * read
    return torch.stack(out[::-1], 1)


def read_of(reads: Tensor, change: Tensor) -> Tensor:
    """[...,H,V]: what :func:`reads_from` [...,H,K,R] takes of changes of the state [...,H,K,V]."""
    return (reads * change).sum(-2)


def received(f: Factors, at: int = -1) -> Tensor:
    """[B,T,H,V]: what position ``at`` reads of the write at each position; the sum over them is y at ``at``."""
    weight = (reads_from(f, at) * f.write_key[..., None]).sum(-2)  # [B,T,H,R]
    return weight * f.write_value


def attention(f: Factors) -> Tensor:
    """[B,T,T] how strongly each position reads each earlier one: the mean of |α| over heads (and values) in y_i = Σ_j
    α_ij x_j, x being the content of a write (Ali et al. 2024, arXiv 2403.01590, for Mamba).
    """
    rows = []
    for i in range(f.shape[1]):
        weight = (reads_from(f, i) * f.write_key[..., None]).sum(-2) * f.strength  # [B,T,H,R]
        rows.append(weight.abs().mean((2, 3)))
    return torch.stack(rows, 1)


def survival(f: Factors, longest: int | None = None) -> Tensor:
    """[B,T,1+longest]: what is left of each position's write after 0, 1, 2, … more positions, as a share of its norm
    (Frobenius, over all heads); NaN behind the end, and where nothing was written.
    """
    n, length = f.shape[:2]
    longest = length - 1 if longest is None else min(longest, length - 1)
    out = f.write_key.new_full((n, length, 1 + longest), float("nan"))
    whole: Tensor | None = None
    for ahead, left in _carried(f, longest):
        value = f.write_value if left.shape[-1] > 1 else f.write_value.norm(dim=-1, keepdim=True)
        size = _size(left, value[:, : length - ahead])
        whole = size if whole is None else whole
        out[:, : length - ahead, ahead] = size / whole[:, : length - ahead]
    return out


def received_and_survival(f: Factors) -> tuple[Tensor, Tensor]:
    """(what every position reads of every write [B, reader, written, H, V], zeros before the write; :func:`survival`)
    in one pass.
    """
    n, length, heads, _, values = f.shape
    reads = f.write_value.new_zeros(n, length, length, heads, values)
    lives = f.write_key.new_full((n, length, length), float("nan"))
    whole: Tensor | None = None
    for ahead, left in _carried(f, length - 1):
        written = torch.arange(length - ahead)
        value = f.write_value[:, : length - ahead]
        reads[:, written + ahead, written] = torch.einsum("bthk,bthkr->bthr", f.read[:, ahead:], left) * value
        size = _size(left, value if left.shape[-1] > 1 else value.norm(dim=-1, keepdim=True))
        whole = size if whole is None else whole
        lives[:, : length - ahead, ahead] = size / whole[:, : length - ahead]
    return reads, lives


def _carried(f: Factors, longest: int) -> Iterator[tuple[int, Tensor]]:
    """(positions ahead, keys [B,T-ahead,H,K,R] that are left of the writes that have as many to come)."""
    decay = decays(f)
    left = f.write_key[..., None].expand(*f.write_key.shape, decay.shape[-1])  # a head that decays as one keeps v
    yield 0, left
    for ahead in range(1, 1 + longest):
        erase = (None, None) if f.erase_key is None else (f.erase_key[:, ahead:], f.erase_strength[:, ahead:])  # type: ignore[index]
        left = advance(left[:, :-1], decay[:, ahead:], None, *erase)
        yield ahead, left


def _size(keys: Tensor, value: Tensor) -> Tensor:
    """[B,T] norm of k vᵀ over all heads, from keys [B,T,H,K,R] and values [B,T,H,R]."""
    return (keys * value[:, :, :, None]).square().sum((2, 3, 4)).sqrt()


def half_life(survived: Tensor) -> Tensor:
    """[B,T]: positions until less than half of a write is left, infinite where that is never within the text; NaN where
    nothing was written. Of survivals [B,T,1+longest].
    """
    offsets = torch.arange(survived.shape[-1], device=survived.device).to(survived)
    first = torch.where(survived < 0.5, offsets, torch.inf).amin(-1)
    return torch.where(survived[..., 0].isnan(), torch.nan, first)
