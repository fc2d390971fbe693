"""What a crosscoder's reconstruction costs each of its source models: the next-token loss with the source's share
spliced in.

The code depends on all sources, so it is computed once from all their activations; then, source by source, the decoded
block takes the place of that source's own activations in that source's own model (error dropped, BOS left alone and not
scored) and everything :func:`workbench.analysis.evaluation.evaluate.evaluate_in_model` measures is measured: loss, its
increase, the share of the loss recovered against zero- and mean-ablation, KL, explained variance, L0, each with an
interval over sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.analysis.evaluation.evaluate import evaluate_in_model
from workbench.analysis.evolution.snapshots import Snapshots
from workbench.run import QUIET, Run


class Rebuilt:
    """A crosscoder seen from one source on given sequences, as :func:`workbench.analysis.splice.splice` wants a
    dictionary.

    ``values``, ``indices`` [b, T, K] are the codes, ``rows`` [b, T, D_s] what they decode to at the source, ``W_dec``
    [F, D_s].
    """

    def __init__(self, values: Tensor, indices: Tensor, rows: Tensor, W_dec: Tensor):
        self.values, self.indices, self.rows, self.W_dec = values, indices, rows, W_dec

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The codes, whatever ``x`` is."""
        return self.values, self.indices

    def decode_sparse(self, values: Tensor, indices: Tensor) -> Tensor:
        """The source's share of the reconstruction."""
        return self.rows


@torch.no_grad()
def source_losses(
    cc: Any,
    snapshots: Snapshots,
    rows_of: Callable[[np.ndarray], Tensor],
    tokens: np.ndarray,
    *,
    is_row: np.ndarray | None = None,
    batch: int = 16,
    seed: int = 0,
    run: Run = QUIET,
) -> pd.DataFrame:
    """One row per source and metric: source, metric, value, low, high, n, unit, interval.

    Args:
        cc: a folded crosscoder. rows_of: sequences -> raw rows [n * (T - 1), D], position 0 left out. tokens: [n_seq,
            T]. is_row: which of them are data, bool likewise; default: by the models' contract.
    """
    n, T = tokens.shape
    codes, rebuilt = [], []
    for at in range(0, n, batch):
        x = rows_of(np.arange(at, min(at + batch, n)))
        y, values, indices = cc.reconstructed_by_source(x)
        codes.append((values, indices))
        rebuilt.append(y.reshape(-1, T - 1, cc.d_in))
    blocks = cc.split(cc.W_dec.detach())

    def view(source: int) -> Callable[[int], Rebuilt]:
        def at(start: int) -> Rebuilt:
            (values, indices), y = codes[start // batch], cc.split(rebuilt[start // batch])[source]
            here = (values[source], indices)
            v, i = (torch.nn.functional.pad(p.reshape(-1, T - 1, p.shape[-1]), (0, 0, 1, 0)) for p in here)
            return Rebuilt(v, i, torch.nn.functional.pad(y, (0, 0, 1, 0)), blocks[source])

        return at

    tables = []
    for i in run.each(range(len(snapshots)), "loss of the reconstructions", unit="source"):
        source = snapshots.sources[i]
        done = evaluate_in_model(
            snapshots.model(i),
            None,
            source.hook,
            tokens,
            view=view(i),
            is_row=is_row,
            batch=batch,
            n_bands=1,
            seed=seed,
        )
        rows = [
            {"source": source.name, "metric": m, **done.estimates[m].as_dict()}
            for m in done.estimates
            if not m.endswith("_share")
        ]
        tables.append(pd.DataFrame(rows))
    return pd.concat(tables, ignore_index=True)
