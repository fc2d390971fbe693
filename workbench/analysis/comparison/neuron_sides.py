"""The neurons of two models on the same tokens, as they are, moved on by whole sequences, or given the token."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from sae.errors import UsageError
from workbench.analysis.comparison.aligned import TokenSet, token_batches
from workbench.analysis.comparison.depth import LayerBest
from workbench.analysis.comparison.given_token import TokenCells
from workbench.analysis.comparison.neurons import Blocks, match_neurons, neurons

MIN_ROWS = 100  # that must be left to condition on their token
MEAN_BYTES = 2**30  # of neurons' means per token held at once

Model = tuple[Any, Sequence[int], list[int]]  # the model, its layers, neurons per layer


class NeuronSides:
    """Two models' neurons on the last ``limit`` tokens of a token set; models run again for every reading."""

    def __init__(self, models: tuple[Model, Model], tokens: TokenSet, limit: int):
        self.models = models
        self.batches = token_batches(tokens, limit=limit)
        self.halfway = token_batches(tokens, limit=limit, halfway=True)

    def match(self, *, shifted: bool, given_token: bool) -> tuple[list[LayerBest], list[LayerBest]]:
        """Best partners in both directions.

        Args:
            shifted: the second side's sequences are moved on by half of them: chance.
            given_token: neurons minus their mean per token, cross-fitted over halves of the sequences.

        Raises:
            UsageError: too few sequences to move them, or too many different tokens to hold their means.
        """
        if shifted and sum(len(ids) for ids, _ in self.batches) < 2:
            raise UsageError(
                "the chance level pairs each text with another one, which needs at least two sequences; there is 1."
                " Compare on more tokens."
            )
        orders = self.batches, self.halfway if shifted else self.batches
        if shifted:  # tokens that are rows in both orders
            both = [a & b for (_, a), (_, b) in zip(*orders, strict=True)]
            orders = tuple([(ids, keep) for (ids, _), keep in zip(o, both, strict=True)] for o in orders)  # type: ignore[assignment]
        if given_token:
            cells = [_cells(order) for order in orders]
            keep = np.intersect1d(cells[0].rows, cells[1].rows)  # rows with a mean on both sides
            if len(keep) < MIN_ROWS:
                raise UsageError(
                    f"{len(keep):,} tokens occur in both halves of the sequences; {MIN_ROWS} are needed. Compare on"
                    " more tokens."
                )
            blocks = [_given_token(m, o, c, keep) for m, o, c in zip(self.models, orders, cells, strict=True)]
        else:
            blocks = [_plain(m, o) for m, o in zip(self.models, orders, strict=True)]
        (_, _, wa), (_, _, wb) = self.models
        return match_neurons(blocks[0], wa, blocks[1], wb)


def _plain(model: Model, batches: list[Any]) -> Blocks:
    """Given indices into the model's layers, the neurons of these layers batch by batch."""
    bridge, layers, _ = model
    return lambda which: (neurons(bridge, ids, [layers[i] for i in which], keep) for ids, keep in batches)


def _cells(batches: list[Any]) -> TokenCells:
    """Cells of the rows of batches of whole sequences."""
    ids = torch.cat([t[keep] for t, keep in batches]).numpy()
    of_sequence = torch.cat([keep.sum(1) for _, keep in batches]).numpy()
    return TokenCells.of(ids, np.repeat(np.arange(len(of_sequence)), of_sequence))


def _given_token(model: Model, batches: list[Any], cells: TokenCells, keep: np.ndarray) -> Blocks:
    """The same minus each neuron's mean over its token's other half, at the rows ``keep``."""
    edges = np.concatenate([[0], np.cumsum([int(keep.sum()) for _, keep in batches])])
    of_row = np.full(int(edges[-1]), -1)
    of_row[cells.rows] = cells.cell
    kept = np.zeros(int(edges[-1]), dtype=bool)
    kept[keep] = True
    spans = list(itertools.pairwise(edges))

    def blocks(which: Sequence[int]) -> Iterator[list[torch.Tensor]]:
        widths = [model[2][i] for i in which]
        need = 4 * cells.n_cells * sum(widths)
        if need > MEAN_BYTES:
            raise UsageError(
                f"means of {sum(widths):,} neurons for {cells.n_cells // 2:,} tokens need {need / 2**30:.1f} GiB; at"
                f" most {MEAN_BYTES / 2**30:.0f} are held in memory. Compare fewer layers."
            )
        sums = [torch.zeros(cells.n_cells, w) for w in widths]
        for (lo, hi), xs in zip(spans, _plain(model, batches)(which), strict=True):
            have = np.flatnonzero(of_row[lo:hi] >= 0)
            for total, x in zip(sums, xs, strict=True):
                total.index_add_(0, torch.from_numpy(of_row[lo:hi][have]), x[torch.from_numpy(have)])
        size = torch.from_numpy(cells.size).float().unsqueeze(1)
        means = [(total / size)[torch.from_numpy(cells.other)] for total in sums]
        for (lo, hi), xs in zip(spans, _plain(model, batches)(which), strict=True):
            at = torch.from_numpy(np.flatnonzero(kept[lo:hi]))
            cell = torch.from_numpy(of_row[lo:hi])[at]
            yield [x[at] - m[cell] for x, m in zip(xs, means, strict=True)]

    return blocks
