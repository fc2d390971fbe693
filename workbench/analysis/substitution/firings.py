"""Where the atoms of a dictionary of writes fire, and which of these places are tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae.writes import WriteSAE, outer
from workbench.activations.harvesting.forward import capture

BLOCK = 32  # sequences run together


@dataclass(frozen=True)
class Codes:
    """Codes of a text's writes, [S, T, K] each, strongest first; values are zero where there is no row."""

    values: Tensor
    indices: Tensor

    def alive(self, n: int) -> Tensor:
        """bool [n] of atoms that fire."""
        return torch.bincount(self.indices[self.values > 0], minlength=n) > 0


@torch.no_grad()
def codes_of(
    model: Any, dictionary: WriteSAE, hooks: tuple[str, str], tokens: NDArray[np.integer], is_row: NDArray[np.bool_]
) -> Codes:
    """Codes of the writes at two hooks (keys, values) on tokens [S, T]; ``is_row`` bool [S, T] says which count."""
    values, indices = [], []
    for lo in range(0, len(tokens), BLOCK):
        ids = torch.from_numpy(tokens[lo : lo + BLOCK].astype(np.int64))
        seen = capture(model, ids, list(hooks))
        heads, keys, wide = dictionary.shape
        key, value = (seen[h].unflatten(-1, (heads, n)) for h, n in zip(hooks, (keys, wide), strict=True))
        v, i = dictionary.encode_sparse(outer(key, value))
        v = v * torch.from_numpy(is_row[lo : lo + BLOCK])[..., None]
        order = v.argsort(dim=-1, descending=True, stable=True)
        values.append(v.gather(-1, order))
        indices.append(i.gather(-1, order))
    return Codes(torch.cat(values), torch.cat(indices))


def choose(codes: Codes, *, atoms: int, firings: int, window: int, seed: int, strongest: bool = False) -> pd.DataFrame:
    """Firings that are tried: atom, sequence, position, rank (0: the strongest of its write), value.

    Per atom up to ``firings`` drawn at random; of the atoms that fire at most ``atoms``, evenly over how often they do.
    Positions with fewer than ``window`` to come are left out, and with ``strongest`` every other rank than 0.
    """
    rng = np.random.default_rng([seed, 7])
    values, indices = codes.values.numpy(), codes.indices.numpy()
    seq, pos, rank = np.nonzero(values > 0)
    there = (pos + window <= values.shape[1]) & ((rank == 0) | (not strongest))
    seq, pos, rank = seq[there], pos[there], rank[there]
    frame = pd.DataFrame(
        {
            "atom": indices[seq, pos, rank],
            "sequence": seq,
            "position": pos,
            "rank": rank,
            "value": values[seq, pos, rank],
        }
    )
    often = frame["atom"].value_counts().sort_values(kind="stable")
    if often.empty:
        return frame
    at = np.unique(np.linspace(0, len(often) - 1, min(atoms, len(often))).round().astype(int))
    chosen = frame[frame["atom"].isin(often.index[at])]
    parts = [
        of_atom.iloc[np.sort(rng.choice(len(of_atom), min(firings, len(of_atom)), replace=False))]
        for _, of_atom in chosen.groupby("atom", sort=True)
    ]
    return pd.concat(parts, ignore_index=True)
