"""The selective scan for float32 on a CPU, compiled: five to six times the speed of the portable one, equal to
rounding.

Same recurrence and the same trade as :mod:`workbench.models.scan`: states are kept at block borders only and recomputed
block by block in the backward pass. A block's states stay in the second-level cache, channels are the innermost axis so
that every inner loop is one vector instruction stream, and the exponential is a polynomial (relative error below 3e-7).
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import torch
from torch import Tensor

_STEPS = 16
_FAST: Any = {
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "cache": True,
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
}


@nb.njit(inline="always", **_FAST)
def _exp(v: Any) -> Any:
    """exp(v) for v <= 0, as 2^k · 2^f with a degree-6 polynomial for |f| <= 1/2."""
    z = max(v * np.float32(1.4426950408889634), np.float32(-126.0))
    k = np.floor(z + np.float32(0.5))
    f = z - k
    p = np.float32(1.5403530e-4)
    p = p * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + np.float32(1.0)
    bits = np.int32((np.int32(k) + np.int32(127)) << np.int32(23))
    return p * bits.view(np.float32)


@nb.njit(**_FAST)
def _forward(x, dt, A, B, C, h0, y, last, borders):  # type: ignore[no-untyped-def]
    n_seq, length, width = x.shape
    n_state = A.shape[0]
    keep = borders.shape[0] > 0
    h = np.empty((n_state, width), np.float32)
    for b in range(n_seq):
        h[:] = h0[b]
        for t in range(length):
            if keep and t % _STEPS == 0:
                borders[b, t // _STEPS] = h
            yt, dtt, xt = y[b, t], dt[b, t], x[b, t]
            for d in range(width):
                yt[d] = 0
            for n in range(n_state):
                hn, An, Bn, Cn = h[n], A[n], B[b, t, n], C[b, t, n]
                for d in range(width):
                    v = _exp(dtt[d] * An[d]) * hn[d] + dtt[d] * xt[d] * Bn
                    hn[d] = v
                    yt[d] += Cn * v
        last[b] = h


@nb.njit(**_FAST)
def _backward(x, dt, A, B, C, borders, gy, glast, gx, gdt, gA, gB, gC, gh0):  # type: ignore[no-untyped-def]
    n_seq, length, width = x.shape
    n_state = A.shape[0]
    states = np.empty((_STEPS + 1, n_state, width), np.float32)
    decays = np.empty((_STEPS, n_state, width), np.float32)
    g = np.empty((n_state, width), np.float32)
    gu = np.empty(width, np.float32)
    for b in range(n_seq):
        g[:] = glast[b]
        for block in range((length + _STEPS - 1) // _STEPS - 1, -1, -1):
            first = block * _STEPS
            steps = min(_STEPS, length - first)
            states[0] = borders[b, block]
            for s in range(steps):
                dtt, xt = dt[b, first + s], x[b, first + s]
                for n in range(n_state):
                    before, after, decay, An, Bn = (
                        states[s, n],
                        states[s + 1, n],
                        decays[s, n],
                        A[n],
                        B[b, first + s, n],
                    )
                    for d in range(width):
                        e = _exp(dtt[d] * An[d])
                        decay[d] = e
                        after[d] = e * before[d] + dtt[d] * xt[d] * Bn
            for s in range(steps - 1, -1, -1):
                t = first + s
                dtt, xt, gyt, gdtt = dt[b, t], x[b, t], gy[b, t], gdt[b, t]
                for d in range(width):
                    gu[d] = 0
                    gdtt[d] = 0
                for n in range(n_state):
                    gn, decay, before, after, An, gAn = g[n], decays[s, n], states[s, n], states[s + 1, n], A[n], gA[n]
                    Bn, Cn = B[b, t, n], C[b, t, n]
                    sum_B = np.float32(0)
                    sum_C = np.float32(0)
                    for d in range(width):
                        v = gn[d] + Cn * gyt[d]
                        sum_C += gyt[d] * after[d]
                        sum_B += v * dtt[d] * xt[d]
                        gu[d] += v * Bn
                        v = v * decay[d]
                        gn[d] = v
                        v = v * before[d]
                        gdtt[d] += v * An[d]
                        gAn[d] += v * dtt[d]
                    gB[b, t, n] = sum_B
                    gC[b, t, n] = sum_C
                for d in range(width):
                    gx[b, t, d] = gu[d] * dtt[d]
                    gdtt[d] += gu[d] * xt[d]
        gh0[b] = g


def _array(v: Tensor) -> np.ndarray:
    return v.detach().contiguous().numpy()


class CompiledScan(torch.autograd.Function):
    """(x [B,L,D], dt [B,L,D], A [D,N], B [B,L,N], C [B,L,N], initial state [B,D,N]) -> (y [B,L,D], last state [B,D,N]);
    float32, CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        n_seq, length, width = x.shape
        arrays = [_array(v) for v in (x, dt, A.t(), B, C, h0.transpose(1, 2))]
        keep = any(ctx.needs_input_grad)
        blocks = -(-length // _STEPS)
        borders = np.empty((n_seq if keep else 0, blocks, A.shape[1], width), np.float32)
        y, last = np.empty((n_seq, length, width), np.float32), np.empty((n_seq, A.shape[1], width), np.float32)
        _forward(*arrays, y, last, borders)
        if keep:
            ctx.save_for_backward(x, dt, A, B, C)
            ctx.borders = borders
        return torch.from_numpy(y), torch.from_numpy(last).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gy: Tensor, glast: Tensor) -> tuple[Tensor, ...]:
        x, dt, A, B, C = ctx.saved_tensors
        arrays = [_array(v) for v in (x, dt, A.t(), B, C)]
        grads = [
            np.empty_like(arrays[0]),
            np.empty_like(arrays[1]),
            np.zeros_like(arrays[2]),
            np.empty_like(arrays[3]),
            np.empty_like(arrays[4]),
        ]
        gh0 = np.empty_like(ctx.borders[:, 0])
        _backward(*arrays, ctx.borders, _array(gy), _array(glast.transpose(1, 2)), *grads, gh0)
        gx, gdt, gA, gB, gC = (torch.from_numpy(g) for g in grads)
        return gx, gdt, gA.t(), gB, gC, torch.from_numpy(gh0).transpose(1, 2)
