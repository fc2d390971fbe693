"""Which rows of a batch are trained on: wrong ones are errors, extreme ones are left out and counted."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.errors import ConfigError, NonFiniteError


def check_rows(x: Tensor, d_in: int, *, where: str) -> None:
    """Raise unless ``x`` is [B, d_in] with at least one row and finite throughout; the message names ``where`` and the row."""
    if x.ndim != 2 or x.shape[1] != d_in:
        raise ConfigError(f"{where}: rows of shape {tuple(x.shape)}, expected [rows, {d_in}]. Set the width to that of the store's hook.")
    if len(x) == 0:
        raise ConfigError(f"{where}: an empty batch.")
    if not torch.isfinite(x.sum()):  # one cheap pass; a finite sum cannot hide NaN or infinity
        bad = (~torch.isfinite(x)).any(1).nonzero().flatten()
        if len(bad):
            shown = ", ".join(str(i) for i in bad[:5].tolist())
            raise NonFiniteError(
                f"{where}: {len(bad)} of {len(x)} rows hold NaN or infinity (rows {shown}). Check the store, or the model that made it."
            )


def median_norm(x: Tensor) -> float:
    """Median length of the rows: the yardstick for outliers, taken once from the first batch."""
    return float(torch.linalg.vector_norm(x, dim=1).median())


def ordinary(x: Tensor, yardstick: float, factor: float) -> Tensor | None:
    """[B] bool, False for rows longer than ``factor`` yardsticks (attention sinks and the like), or None where all are ordinary."""
    if factor <= 0:
        return None
    keep = torch.linalg.vector_norm(x, dim=1) <= factor * yardstick
    return None if bool(keep.all()) else keep
