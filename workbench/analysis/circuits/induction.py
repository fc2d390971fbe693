"""Induction heads and the previous-token heads that feed them, by two criteria: where a head looks, and what it does.

By attention: an induction head's last query looks at B, the token after the earlier A (Olsson et al. 2022, arXiv
2209.11895); a previous-token head looks one back everywhere. By effect: an induction head loses the answer when its key
and value at B come from the corrupted run; a previous-token head when its output at B is removed from the induction
heads' keys. Both are reported; where they disagree the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.analysis.circuits.effects import interval, tidy
from workbench.analysis.circuits.layers import attention_layers
from workbench.analysis.circuits.paths import collect
from workbench.analysis.circuits.tasks import PromptSet

LOOKS, SHARE, LEAST = (
    0.25,
    0.1,
    0.1,
)  # least mean attention; least share of the summed absolute effects, and least effect
Head = tuple[int, int]


@torch.no_grad()
def attention_scores(model: Any, prompts: PromptSet) -> dict[str, np.ndarray]:
    """Attention of every head, [P,L,H], L attention layers: `induction` last → B, `duplicate` last → A, `previous` mean
    over positions of t → t-1.

    Tasks without the marks A and B have `previous` only.
    """
    last = prompts.clean.shape[1] - 1
    marks = {
        name: prompts.marks[mark] for name, mark in (("induction", "B"), ("duplicate", "A")) if mark in prompts.marks
    }

    def looks(v: torch.Tensor, rows: slice) -> torch.Tensor:
        """[B, scores, H] of patterns [B, H, T, T]."""
        at = [v[np.arange(len(v)), :, last, mark[rows]] for mark in marks.values()]
        return torch.stack([v.diagonal(-1, 2, 3)[..., 1:].mean(-1), *at], 1)

    names = [f"blocks.{l}.attn.hook_pattern" for l in attention_layers(model)]
    seen = collect(model, prompts.clean, dict.fromkeys(names, looks))
    scores = torch.stack([seen[name] for name in names], 2).double().numpy()
    return {name: scores[:, i] for i, name in enumerate(["previous", *marks])}


def score_table(scores: dict[str, np.ndarray], layers: Sequence[int] | None = None) -> pd.DataFrame:
    """One row per score, layer and head: the mean as `value`, `low`, `high`, `n` prompts. ``layers`` names the layers
    of the scores; all in order by default.
    """

    def axes(v: np.ndarray) -> dict[str, Sequence[int]]:
        return {"layer": range(v.shape[1]) if layers is None else layers, "unit": range(v.shape[2])}

    parts = [tidy(v, axes(v), score=name) for name, v in scores.items()]
    return pd.concat(parts, ignore_index=True).rename(columns={"effect": "value"})


def by_attention(scores: np.ndarray, layers: Sequence[int] | None = None) -> list[Head]:
    """Heads whose mean score is at least 0.25, strongest first; scores [P,L,H] of ``layers`` (all in order by
    default).
    """
    mean = scores.mean(0)
    return _named([h for h in _ranked(mean) if mean[h] >= LOOKS], layers)


def by_effect(effects: np.ndarray, beyond: float = 0.0, layers: Sequence[int] | None = None) -> list[Head]:
    """Heads that lower the logit difference: interval below zero, at least 0.1, and a tenth of the summed absolute
    effects; effects [P,L,H] of ``layers`` (all in order by default), NaN where a head was not measured, ``beyond``
    being the summed absolute effects of those.
    """
    n = np.isfinite(effects).sum(0)
    mean, (_, high) = np.where(np.isfinite(effects), effects, 0.0).sum(0) / np.maximum(n, 1), interval(effects)
    total = np.abs(mean).sum() + beyond
    return _named([h for h in _ranked(-mean) if high[h] < 0 and -mean[h] >= max(SHARE * total, LEAST)], layers)


def _named(heads: list[Head], layers: Sequence[int] | None) -> list[Head]:
    """Heads under the numbers of their layers."""
    return heads if layers is None else [(layers[l], h) for l, h in heads]


def _ranked(values: np.ndarray) -> list[Head]:
    order = np.argsort(-values, axis=None, kind="stable")
    return [(int(l), int(h)) for l, h in zip(*np.unravel_index(order, values.shape), strict=True)]


@dataclass(frozen=True)
class Found:
    """Heads of one role by both criteria, strongest first."""

    role: str
    attention: list[Head]
    effect: list[Head]

    @property
    def criteria_agree(self) -> bool:
        """Whether every head by effect also looks there, and the head that looks there most has the effect."""
        return bool(self.effect) and set(self.effect) <= set(self.attention) and self.attention[0] in self.effect

    def sentence(self) -> str:
        """What was found, in words."""

        def names(heads: list[Head]) -> str:
            return ", ".join(f"L{l}H{h}" for l, h in heads) or "none"

        if not self.attention and not self.effect:
            return f"No {self.role} head by either criterion."
        verdict = "agree" if self.criteria_agree else "do not agree"
        return (
            f"{self.role.capitalize()} heads by attention: {names(self.attention)}; by effect: {names(self.effect)}."
            f" The criteria {verdict}."
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "attention": self.attention,
            "effect": self.effect,
            "agree": self.criteria_agree,
            "sentence": self.sentence(),
        }
