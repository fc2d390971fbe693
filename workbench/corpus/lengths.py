"""How long the documents of a corpus are, in tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

QUANTILES = (0.05, 0.5, 0.95)


def lengths_of(sizes: np.ndarray) -> dict[str, Any]:
    """What a plan says of its documents' lengths: tokens in all, and the 5 %, 50 % and 95 % quantile of a document."""
    if not len(sizes):
        return {}
    quantiles = [round(float(q), 1) for q in np.quantile(sizes, QUANTILES)]
    return {"tokens_there": int(sizes.sum()), "tokens_per_document": quantiles}
