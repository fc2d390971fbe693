"""The settings the claims' own dictionaries are trained with, spelt out: the program's defaults may move, a claim's
number must not move with them.
"""

from __future__ import annotations

import math
from typing import Any

ADAM: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "details": {"encoder_rate": 1.0, "bias_rate": 1.0}}


def plain(d_sae: int, lr: float | None = None) -> dict[str, Any]:
    """Optimiser of a Top-K or L1 dictionary of ``d_sae`` latents: plain Adam, at ``lr`` or at the rate by width
    (Gao et al. 2024, figure 3).
    """
    return ADAM | {"lr": min(0.01, 1e-3 * math.sqrt(2**14 / d_sae)) if lr is None else lr}
