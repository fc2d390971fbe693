"""Where the massive activations among the rows of a record are: which share, at which positions, on which tokens.

They are what a dictionary's reader sees first in a real model, and training leaves them out (:mod:`sae.populations`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from sae.populations import norms, populations_of
from workbench.analysis.latents.encoded import MAX_BLOCK, Rows

NAMED = 5  # positions and tokens that are named
PLACES = 12  # places, a position and a token, that are named with what they hold


def massive_rows(
    store: Rows, hook: str, rows: Sequence[slice], ids: np.ndarray, pos: np.ndarray, *, source: Any = None
) -> dict[str, Any]:
    """JSON-ready: ``n`` of ``n_rows`` rows are massive (longer than ``limit``), hold ``square_share`` of all squared
    norm, and lie at ``positions`` and on ``tokens`` ([position or token id, rows], commonest first), and at ``places``
    ([position, token id, rows, share of all squared norm], those that hold most first).

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
        "places": _places(ids[massive], pos[massive], lengths.double().square().numpy(), massive),
    }


def _places(ids: np.ndarray, pos: np.ndarray, square: np.ndarray, massive: np.ndarray) -> list[list[Any]]:
    """[position, token id, rows, share of all squared norm] of the places that hold most."""
    frame = pd.DataFrame({"pos": pos, "id": ids, "square": square[massive] / square.sum()})
    found = frame.groupby(["pos", "id"])["square"].agg(["size", "sum"]).sort_values("sum", ascending=False)
    return [[int(p), int(i), int(n), float(share)] for (p, i), n, share in found.head(PLACES).itertuples()]
