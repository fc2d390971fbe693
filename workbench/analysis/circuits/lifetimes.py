"""How long a recurrent layer keeps what it wrote: what is left of each position's write after 1, 2, 3, … more
positions, by what the token is.

Decay and erasure act on a write whatever else is in the state, so what is left of it is exact, per text: the norm of
the carried write over its own (Frobenius, over all heads of the layer).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.analysis.circuits.effects import tidy
from workbench.analysis.circuits.layer_runs import layer_runs
from workbench.corpus.shown import displayed_vocab
from workbench.models.recurrent.algebra import half_life, survival

LONGEST = 32  # offsets of the curves
MOST = 32  # texts
CONTENTS = ("all", "first position", "space", "number", "word start", "inside a word", "sign")


@dataclass(frozen=True)
class Lifetimes:
    """Attributes:
    layers: L recurrent layers. survival: float32 [P,L,T,1+A] what is left of each write after 0 … A positions, NaN
        behind the end. half_lives: float32 [P,L,T] positions until less than half is left, infinite where that is never
        within the text.
    table: a row per layer, content and offset: ``survival``, ``low``, ``high`` (bootstrap over texts), ``n`` texts.
    """

    layers: list[int]
    survival: np.ndarray
    half_lives: np.ndarray
    table: pd.DataFrame

    def numbers(self) -> dict[str, Any]:
        """Per layer the median half-life of its writes, and the share of writes that outlive their text."""
        out = {}
        for i, layer in enumerate(self.layers):
            found = self.half_lives[:, i][~np.isnan(self.half_lives[:, i])]
            middle = float(np.median(found)) if len(found) else float("nan")
            out[str(layer)] = {
                "median": middle if np.isfinite(middle) else None,  # None: more than half outlive their text
                "outlive": float(np.isinf(found).mean()) if len(found) else None,
                "n": len(found),
                "unit": "positions",
            }
        return out


@torch.no_grad()
def lifetimes(model: Any, tokens: np.ndarray, longest: int = LONGEST) -> Lifetimes:
    """Of every recurrent layer of a model on texts [P,T], the first ``MOST`` of them."""
    tokens, parts, layers = tokens[:MOST], [], []
    longest = min(longest, tokens.shape[1] - 1)
    for run in layer_runs(model, tokens):
        parts.append(torch.cat([survival(run.factors(rows), longest) for rows in run.batches()]))
        layers.append(run.layer.index)
    left = torch.stack(parts, 1)  # [P,L,T,1+A]
    lives = torch.stack([half_life(part) for part in parts], 1)
    content = content_of(model, tokens)
    tables = []
    for name in CONTENTS:
        mask = np.ones_like(content, bool) if name == "all" else content == name
        curve = _mean(left.double().numpy(), mask)
        if np.isfinite(curve).any():
            tables.append(tidy(curve, {"layer": layers, "offset": range(longest + 1)}, content=name))
    table = pd.concat(tables, ignore_index=True).rename(columns={"effect": "survival"})
    return Lifetimes(layers, left.float().numpy(), lives.float().numpy(), table)


def _mean(left: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[P,L,1+A]: mean of survivals [P,L,T,1+A] over the positions of a mask [P,T] that have them; NaN without."""
    use = np.isfinite(left) & mask[:, None, :, None]
    count = use.sum(2)
    return np.where(count > 0, np.where(use, left, 0).sum(2) / np.maximum(count, 1), np.nan)


def content_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    """[P,T] what each token is, one of ``CONTENTS``; the first position is its own, whatever stands there."""
    vocab = displayed_vocab(model.tokenizer, model.cfg.d_vocab)
    kinds = np.array([_kind(token) for token in vocab], dtype=object)
    found = kinds[tokens]
    found[:, 0] = "first position"
    return found


def _kind(token: str) -> str:
    """What a token is, by its displayed text."""
    plain = token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n").replace("·", " ").replace("⏎", "\n")
    if not plain.strip():
        return "space"
    if re.fullmatch(r"\s*[\d.,_]*\d[\d.,_]*", plain):
        return "number"
    if re.search(r"[^\W\d_]", plain):
        return "word start" if plain[0].isspace() or not plain[0].islower() else "inside a word"
    return "sign"
