"""Reading what ``workbench graph --split`` puts beside a graph: edges by heads or channels, scores by pairs.

``splits.parquet``    source, target, layer, unit (``H3`` head, ``C17`` channel, ``S2`` head of a state,
                      ``past`` the mixer, ``others``), value:
                      the values of one edge and layer add up to the edge
``loadings.parquet``  target, layer, unit, value: over all sources, kept or not
``reads.parquet``     target, layer, unit, position, value: where the units with the largest loadings bring it from
``scores.parquet``    target, layer, unit, query, key, score, pattern, query_part, key_part, value
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sae.errors import CorruptError

NAMES = ("splits", "loadings", "reads", "scores")


@dataclass(frozen=True)
class Splits:
    """The four tables."""

    splits: pd.DataFrame
    loadings: pd.DataFrame
    reads: pd.DataFrame
    scores: pd.DataFrame

    def strongest(self, source: str, target: str) -> str:
        """``L2H1 +1.3``: the one unit that carries most of an edge; empty where nothing between is split."""
        rows = self.splits[(self.splits["source"] == source) & (self.splits["target"] == target)]
        rows = rows[~rows["unit"].isin(["past", "others"])]
        if rows.empty:
            return ""
        row = rows.loc[rows["value"].abs().idxmax()]
        return f"L{row['layer']}{row['unit']} {row['value']:+.3g}"


def read_splits(folder: Path) -> Splits | None:
    """The tables of a graph's folder; None where it was drawn without ``--split``.

    Raises:
        CorruptError: some are there and others not, or one cannot be read.
    """
    there = [n for n in NAMES if (folder / f"{n}.parquet").is_file()]
    if not there:
        return None
    if len(there) < len(NAMES):
        gone = next(n for n in NAMES if n not in there)
        raise CorruptError(f"{folder.name}/{gone}.parquet is missing. Draw the graph again: `workbench graph --split`.")
    try:
        return Splits(*(pd.read_parquet(folder / f"{n}.parquet") for n in NAMES))
    except (OSError, ValueError) as e:
        raise CorruptError(f"the split of {folder.name} cannot be read ({e}). Draw the graph again.") from e
