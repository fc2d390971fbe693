"""A recurrent layer read as attention: what each position takes of each earlier one's write, decay and erasure between
them included (Ali et al. 2024, arXiv 2403.01590, for Mamba).

Arrays: P prompts, T positions, L recurrent layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from workbench.analysis.circuits.layer_runs import layer_runs
from workbench.models.recurrent.algebra import attention, received


@torch.no_grad()
def hidden_attention(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Mean |α_ij| over heads (a Mamba's channels), float32 [P, L, T, T], in y_i = Σ_j α_ij x_j: how strongly each
    position reads each earlier one.
    """
    layers = [torch.cat([attention(run.factors(rows)) for rows in run.batches()]) for run in layer_runs(model, tokens)]
    return torch.stack(layers, 1).float().numpy()


@torch.no_grad()
def last_reads(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Mean size over values of what the last position receives from each position's write, float32 [P, L, T]."""
    layers = []
    for run in layer_runs(model, tokens):
        parts = [received(run.factors(rows)).abs().mean((2, 3)) for rows in run.batches()]
        layers.append(torch.cat(parts))
    return torch.stack(layers, 1).float().numpy()
