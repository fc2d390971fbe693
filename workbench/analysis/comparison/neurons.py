"""Neurons as a baseline of similarity: max pairwise Pearson correlation of dense activations, in blocks.

Transformer neurons are MLP activations after the nonlinearity; a Mamba block's are concat(SSM input x, SiLU(gate)), so
that Pythia-160M (3,072) and mamba-130m (2 x 1,536) have as many per layer (arXiv 2410.06672). Dense activations couple
on every token, so here a matrix product is the right tool: float32 products of centred token blocks, summed in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sae.errors import UsageError
from workbench.analysis.comparison.depth import LayerBest
from workbench.analysis.correlation import Floats, Ints
from workbench.models.anatomy import anatomy_of

PRODUCT_BYTES = 2**30  # of the neuron x neuron sums held at once; more layers mean another pass over the tokens


def neuron_hooks(model: Any, layer: int) -> list[str]:
    """Hook names whose activations, side by side, are the neurons of a layer.

    Raises:
        UsageError: the layer shows none.
    """
    at = anatomy_of(model).layers[layer]
    if not at.neurons:
        raise UsageError(
            f"layer {layer} of {model.cfg.architecture} ({at.kind}) shows no neurons: neither an MLP's activations"
            " after its nonlinearity (a mixture of experts has others for each token) nor a Mamba's x and gate."
        )
    return list(at.neurons)


def neurons(model: Any, tokens: torch.Tensor, layers: Sequence[int], keep: torch.Tensor) -> list[torch.Tensor]:
    """Neurons of some layers on tokens [batch, ctx], where ``keep`` (bool, likewise): one [kept, width] per layer."""
    from workbench.activations.harvesting.forward import capture

    hooks = {layer: neuron_hooks(model, layer) for layer in layers}
    seen = capture(model, tokens, [h for names in hooks.values() for h in names])
    out = []
    for names in hooks.values():
        parts = [torch.nn.functional.silu(seen[n]) if n.endswith("hook_gate") else seen[n] for n in names]
        out.append(torch.cat(parts, dim=-1)[keep].float())
    return out


class DenseSums:
    """Running sums of x, x^2, y, y^2 and x^T y over token blocks, about the first block's means."""

    def __init__(self) -> None:
        self.n = 0
        self._shift: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add a block of the same tokens: x [rows, p], y [rows, q], float32."""
        if self._shift is None:
            self._shift = x.mean(0), y.mean(0)
            p, q = x.shape[1], y.shape[1]
            self.sx, self.sxx, self.sy, self.syy = (torch.zeros(w, dtype=torch.float64) for w in (p, p, q, q))
            self.low = [torch.full((w,), torch.inf) for w in (p, q)]
            self.high = [torch.full((w,), -torch.inf) for w in (p, q)]
            self.sxy = torch.zeros(p, q, dtype=torch.float64)
        for i, v in enumerate((x, y)):
            self.low[i] = torch.minimum(self.low[i], v.amin(0))
            self.high[i] = torch.maximum(self.high[i], v.amax(0))
        x, y = x - self._shift[0], y - self._shift[1]
        self.n += len(x)
        self.sx += x.sum(0, dtype=torch.float64)
        self.sy += y.sum(0, dtype=torch.float64)
        self.sxx += x.double().square().sum(0)
        self.syy += y.double().square().sum(0)
        self.sxy += x.t() @ y

    def correlation(self) -> Floats:
        """[p, q] Pearson correlations; NaN where either side is constant."""
        vx, vy = (s2 - s * s / self.n for s, s2 in ((self.sx, self.sxx), (self.sy, self.syy)))
        r = (self.sxy - torch.outer(self.sx, self.sy) / self.n) / torch.outer(vx.sqrt(), vy.sqrt())
        r[self.low[0] == self.high[0]] = torch.nan
        r[:, self.low[1] == self.high[1]] = torch.nan
        return r.clamp(-1, 1).numpy()


Blocks = Callable[[Sequence[int]], Iterator[list[torch.Tensor]]]


def match_neurons(
    blocks_a: Blocks,
    widths_a: Sequence[int],
    blocks_b: Blocks,
    widths_b: Sequence[int],
    *,
    product_bytes: int = PRODUCT_BYTES,
) -> tuple[list[LayerBest], list[LayerBest]]:
    """Best partner of every neuron over all layers of the other side, in both directions.

    Args:
        blocks_a, blocks_b: given layer indices, an iterator of token blocks, each a list of [rows, width] per layer;
            both sides give the same tokens in the same blocks. It is started again for every group of layers of a.
        widths_a, widths_b: neurons per layer.
    """
    every_b = list(range(len(widths_b)))
    per_layer = max(1, 8 * max(widths_a) * sum(widths_b))
    size = max(1, product_bytes // per_layer)
    forward: list[LayerBest] = []
    to_a: list[Floats] = []  # per group: [groups' neurons, all of b]
    for lo in range(0, len(widths_a), size):
        group = list(range(lo, min(lo + size, len(widths_a))))
        sums = DenseSums()
        for xs, ys in zip(blocks_a(group), blocks_b(every_b), strict=True):
            sums.add(torch.cat(xs, dim=1), torch.cat(ys, dim=1))
        r = sums.correlation()
        offsets = np.concatenate([[0], np.cumsum([widths_a[i] for i in group])])
        forward += [_best(r[s:e], widths_b, sums.n) for s, e in itertools.pairwise(offsets)]
        to_a.append(r)
    offsets = np.concatenate([[0], np.cumsum(widths_b)])
    backward = [
        _best(np.concatenate([r[:, s:e] for r in to_a]).T, widths_a, sums.n) for s, e in itertools.pairwise(offsets)
    ]
    return forward, backward


def _best(r: Floats, widths: Sequence[int], n_tokens: int) -> LayerBest:
    """Best two columns of every row; columns are layers of the given widths side by side."""
    filled = np.where(np.isnan(r), -np.inf, r)
    order = np.argpartition(-filled, 1, axis=1)[:, :2] if r.shape[1] > 1 else np.zeros((len(r), 2), dtype=np.int64)
    row = np.arange(len(r))[:, None]
    order = np.take_along_axis(order, np.argsort(-filled[row, order], axis=1, kind="stable"), axis=1)
    offsets = np.concatenate([[0], np.cumsum(widths)])
    layer: Ints = np.searchsorted(offsets, order, side="right") - 1
    best: NDArray[np.float64] = filled[row, order]
    missing = ~np.isfinite(best)
    best = np.where(missing, np.nan, best)
    layer, within = np.where(missing, -1, layer), np.where(missing, -1, order - offsets[layer])
    fired = np.full(len(r), n_tokens)
    return LayerBest(best[:, 0], layer[:, 0], within[:, 0], fired, best[:, 1], layer[:, 1], within[:, 1], fired)
