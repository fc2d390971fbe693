"""Where the massive activations among the rows of a record are: which share, at which positions, on which tokens.

They are what a dictionary's reader sees first in a real model, and training leaves them out (:mod:`sae.populations`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from sae.populations import Populations, norms, populations_of
from workbench.analysis.latents.encoded import MAX_BLOCK, Codes, Rows

NAMED = 5  # positions and tokens that are named
PLACES = 12  # places, a position and a token, that are named with what they hold


@dataclass(frozen=True)
class Massive:
    """Which rows are massive: ``rows`` bool [N], their ``lengths`` [N] and how many there are."""

    rows: np.ndarray
    lengths: np.ndarray
    found: Populations

    @classmethod
    def of(cls, store: Rows, hook: Any, rows: Sequence[slice], *, source: Any = None) -> Massive:
        """Of the ranges ``rows``, by what a dictionary reads there; rows of skipped sequences, which hold NaN, are left
        out as they are of the codes.
        """
        lengths = torch.cat(
            [
                norms(store.read(hook, rows=slice(at, min(at + MAX_BLOCK, part.stop)), source=source)).cpu()
                for part in rows
                for at in range(part.start, part.stop, MAX_BLOCK)
            ]
        )
        lengths = lengths[torch.isfinite(lengths)]
        found = populations_of(lengths)
        return cls((lengths > found.limit).numpy(), lengths.numpy(), found)

    def firings(self, codes: Codes) -> np.ndarray:
        """[F] firings of every latent on massive rows, of codes of the same rows."""
        return np.bincount(codes.latent[self.rows[codes.row]], minlength=codes.n_latents)

    def about(self, ids: np.ndarray, pos: np.ndarray) -> dict[str, Any]:
        """JSON-ready: ``n`` of ``n_rows`` rows are massive (longer than ``limit``), hold ``square_share`` of all
        squared norm, and lie at ``positions`` and on ``tokens`` ([position or token id, rows], commonest first), and at
        ``places`` ([position, token id, rows, share of all squared norm], those that hold most first).

        Args:
            ids, pos: [N] token and position of every row.
        """
        found, massive = self.found, self.rows
        return {
            "n": found.n_massive,
            "n_rows": found.n,
            "square_share": found.square_share,
            "median_norm": found.reference_norm,
            "limit": found.limit,
            "positions": [list(c) for c in Counter(pos[massive].tolist()).most_common(NAMED)],
            "tokens": [list(c) for c in Counter(ids[massive].tolist()).most_common(NAMED)],
            "places": _places(ids[massive], pos[massive], np.square(self.lengths), massive),
        }


def _places(ids: np.ndarray, pos: np.ndarray, square: np.ndarray, massive: np.ndarray) -> list[list[Any]]:
    """[position, token id, rows, share of all squared norm] of the places that hold most."""
    frame = pd.DataFrame({"pos": pos, "id": ids, "square": square[massive] / square.sum()})
    found = frame.groupby(["pos", "id"])["square"].agg(["size", "sum"]).sort_values("sum", ascending=False)
    return [[int(p), int(i), int(n), float(share)] for (p, i), n, share in found.head(PLACES).itertuples()]
