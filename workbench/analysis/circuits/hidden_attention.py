"""A Mamba layer read as attention: α_ij = C_i (∏_{k=j+1..i} Ā_k) B̄_j per channel (Ali et al. 2024, arXiv 2403.01590).

With B̄_j = Δ_j B_j this is what position i receives from x_j: y_i = Σ_{j≤i} α_ij x_j. Arrays: P prompts, T positions, D
channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.analysis.circuits.paths import collect
from workbench.analysis.circuits.states import decay_rates


def attention_of(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """α [T,T,D] of one sequence, zero above the diagonal; dt [T,D], A [D,N], B and C [T,N]."""
    T, D = dt.shape
    out = dt.new_zeros(T, T, D)
    carried = dt.new_zeros(T, D, A.shape[1])  # ∏ Ā · B̄_j of every earlier j
    for i in range(T):
        carried[:i] *= torch.exp(dt[i, :, None] * A)
        carried[i] = dt[i, :, None] * B[i]
        out[i, : i + 1] = carried[: i + 1] @ C[i]
    return out


@torch.no_grad()
def hidden_attention(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Mean |α_ij| over channels, float32 [P, layers, T, T]: how strongly each position reads each earlier one."""
    names = [f"blocks.{l}.mixer.hook_{k}" for l in range(len(model.blocks)) for k in ("dt", "B", "C")]
    seen = collect(model, tokens, dict.fromkeys(names, lambda v, rows: v))
    out = np.empty((len(tokens), len(model.blocks), tokens.shape[1], tokens.shape[1]), np.float32)
    for l in range(len(model.blocks)):
        dt, B, C = (seen[f"blocks.{l}.mixer.hook_{k}"] for k in ("dt", "B", "C"))
        for p in range(len(tokens)):
            out[p, l] = attention_of(dt[p], decay_rates(model, l), B[p], C[p]).abs().mean(-1).numpy()
    return out


@torch.no_grad()
def last_reads(model: Any, prompts_clean: np.ndarray) -> np.ndarray:
    """Mean |α_{T-1,j} x_j| over channels, float32 [P, layers, T]: what the last position receives from
    each position.
    """
    kept = {"x": lambda v, rows: v, "dt": lambda v, rows: v, "B": lambda v, rows: v, "C": lambda v, rows: v[:, -1]}
    names = {f"blocks.{l}.mixer.hook_{k}": pick for l in range(len(model.blocks)) for k, pick in kept.items()}
    seen = collect(model, prompts_clean, names)
    out = []
    for l in range(len(model.blocks)):
        x, dt, B, C = (seen[f"blocks.{l}.mixer.hook_{k}"] for k in ("x", "dt", "B", "C"))
        passed = dt.sum(1, keepdim=True) - dt.cumsum(1)
        layer = []
        for p in range(len(x)):
            weight = torch.einsum("tdn,tn,n->td", torch.exp(passed[p, :, :, None] * decay_rates(model, l)), B[p], C[p])
            layer.append((weight * dt[p] * x[p]).abs().mean(-1))
        out.append(torch.stack(layer))
    return torch.stack(out, 1).numpy()
