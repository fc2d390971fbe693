"""One attention score taken apart: which pairs of a query latent and a key latent make a head look where it looks.

With the norm's scale held, query and key are affine in the residual stream, and the score is their product (rotated by
position, divided by the root of the width): score = q^T M k. So with the stream written as its parts at both positions,
the score is exactly the sum over pairs of parts, (W_Q a)^T M (W_K b), constants (biases of norm, projections and
dictionary) being a part of either side. That the pairs add up to the model's own score is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.analysis.circuits.tail import Tail
from workbench.analysis.graph.trace import holding
from workbench.models.anatomy import anatomy_of
from workbench.models.head import norms_edited

CONSTANT = "constant"


@dataclass(frozen=True)
class Score:
    """A score and its pairs: ``value[a, b]`` of part ``query[a]`` with part ``key[b]``."""

    query: list[str]
    key: list[str]
    value: np.ndarray
    score: float
    pattern: float

    @property
    def gap(self) -> float:
        """Difference between the score and the sum of its pairs, over the sum of their sizes."""
        return abs(float(self.value.sum()) - self.score) / max(float(np.abs(self.value).sum()), 1e-30)


class _Seen(Exception):
    """Raised inside a block when the scores have been seen."""


class ScoreSplitter:
    """One prompt in a model, ready to take scores apart.

    Args:
        tail: the prompt's clean run. held: hook -> value of the norms' scales.
    """

    def __init__(self, tail: Tail, held: Mapping[str, Tensor]):
        self.tail, self.model, self.held = tail, tail.model, held

    def pairs(
        self, layer: int, head: int, at: tuple[int, int], parts: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
    ) -> Score:
        """The score of one head between two positions.

        Args:
            at: (position of the query, of the key). parts: of the stream [D] that enters the block, at these positions;
                what they leave of it counts as constant.
        """
        heads = anatomy_of(self.model).layers[layer]
        shared = head // max(1, heads.heads // max(1, heads.kv_heads))
        query = head * max(1, heads.query_rows // max(1, heads.heads))
        names = [[*some, CONSTANT] for some in parts]
        x = self.tail.inputs[layer][0]
        rest = [x[p] - sum(some.values(), torch.zeros_like(x[p])) for p, some in zip(at, parts, strict=True)]
        stacks = [torch.stack([torch.zeros_like(r), *some.values(), r]) for some, r in zip(parts, rest, strict=True)]
        images = [
            self._image(layer, p, stack)[kind][:, p, h]
            for p, stack, kind, h in zip(at, stacks, ("q", "k"), (query, shared), strict=True)
        ]
        own = []
        for image in images:
            linear = image[1:] - image[:1]
            linear[-1] += image[0]  # the projection's own constants
            own.append(linear.double())
        product, score, pattern = self._product(layer, head, (query, shared), at)
        return Score(names[0], names[1], np.asarray(own[0] @ product @ own[1].T), score, pattern)

    def _image(self, layer: int, position: int, rows: Tensor) -> dict[str, Tensor]:
        """Queries and keys [rows, S, heads, d_head] with each row at a position of the stream, norms held."""
        resid = self.tail.inputs[layer].repeat(len(rows), 1, 1)
        resid[:, position] = rows
        seen: dict[str, Tensor] = {}
        self._until_scores(
            layer, resid, [(c, lambda v, hook, c=c: seen.__setitem__(c, v.detach())) for c in "qk"], seen
        )
        return seen

    def _product(
        self, layer: int, head: int, rows: tuple[int, int], at: tuple[int, int]
    ) -> tuple[Tensor, float, float]:
        """(M [d_head, d_head] with score = q^T M k at these positions, the model's own score, its pattern)."""
        seen: dict[str, Tensor] = {}
        self._until_scores(
            layer, self.tail.inputs[layer], [("q", lambda v, hook: seen.__setitem__("q", v.detach()))], seen
        )
        width, score = seen["q"].shape[-1], float(seen["scores"][0, head, at[0], at[1]])
        pattern = float(seen["scores"][0, head, at[0]].softmax(-1)[at[1]])
        leaf = seen["q"].repeat(width, 1, 1, 1).requires_grad_(True)

        def basis(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, at[1], rows[1]] = torch.eye(width).to(value)
            return value

        with torch.enable_grad():
            resid = self.tail.inputs[layer].repeat(width, 1, 1)
            self._until_scores(layer, resid, [("q", lambda v, hook: leaf), ("k", basis)], seen, grad=True)
            (found,) = torch.autograd.grad(seen["scores"][:, head, at[0], at[1]].sum(), leaf)
        return found[:, at[0], rows[0]].T.double(), score, pattern

    def _until_scores(
        self, layer: int, resid: Tensor, hooks: list[tuple[str, Any]], seen: dict[str, Tensor], *, grad: bool = False
    ) -> None:
        """Run a block as far as its scores, which go to ``seen["scores"]``."""

        def stop(value: Tensor, hook: Any) -> None:
            seen["scores"] = value
            raise _Seen

        at = f"blocks.{layer}.attn.hook_"
        opened = [*holding(self.held), *((at + name, f) for name, f in hooks), (at + "attn_scores", stop)]
        try:
            with norms_edited():
                self.tail.run(layer, torch.zeros(len(resid), dtype=torch.int64), opened, resid, grad=grad)
        except _Seen:
            return
