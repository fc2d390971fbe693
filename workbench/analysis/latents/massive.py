"""Where the massive activations among the rows of a record are: which share, at which positions, on which tokens.

They are what a dictionary's reader sees first in a real model, and training leaves them out (:mod:`sae.populations`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sae.populations import norms, populations_of
from workbench.analysis.latents.encoded import MAX_BLOCK, Rows

NAMED = 5  # positions and tokens that are named


def massive_rows(
    store: Rows, hook: str, rows: Sequence[slice], ids: np.ndarray, pos: np.ndarray, *, source: Any = None
) -> dict[str, Any]:
    """JSON-ready: ``n`` of ``n_rows`` rows are massive (longer than ``limit``), hold ``square_share`` of all squared
    norm, and lie at ``positions`` and on ``tokens`` ([position or token id, rows], commonest first).

    Args:
        rows: ranges of the store. ids, pos: [N] token and position of every row in them.
    """
    lengths = torch.cat(
        [
            norms(store.read(hook, rows=slice(at, min(at + MAX_BLOCK, part.stop)), source=source)).cpu()
            for part in rows
            for at in range(part.start, part.stop, MAX_BLOCK)
        ]
    )
    found = populations_of(lengths)
    massive = (lengths > found.limit).numpy()
    return {
        "n": found.n_massive,
        "n_rows": found.n,
        "square_share": found.square_share,
        "median_norm": found.reference_norm,
        "limit": found.limit,
        "positions": [list(c) for c in Counter(pos[massive].tolist()).most_common(NAMED)],
        "tokens": [list(c) for c in Counter(ids[massive].tolist()).most_common(NAMED)],
    }
