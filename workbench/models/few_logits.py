"""The logits of a few tokens: what a change of a model must not move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TOKENS = 4


@torch.no_grad()
def few_logits(model: Any) -> Tensor | None:
    """Logits [1, 4, vocabulary] of the first four ids, of a bridge or a Hugging Face model; None on the meta device."""
    at = next(model.parameters())
    if at.is_meta:
        return None
    out = model(torch.arange(TOKENS, device=at.device)[None], use_cache=False)
    logits: Tensor = getattr(out, "logits", out)
    return logits


def same_logits(before: Tensor | None, after: Tensor | None, *, share: float) -> bool:
    """Whether no logit differs by more than ``share`` of the largest; None, on the meta device, counts as the same."""
    if before is None or after is None:
        return True
    size = before.abs().max().clamp_min(1e-6)
    return before.shape == after.shape and bool((before - after).abs().max() <= share * size)
