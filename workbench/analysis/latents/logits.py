"""Direct logit effects of decoder directions: what a latent says to the unembedding if no later layer touches it.

For a direction d the final norm is folded in as far as it is linear: a LayerNorm subtracts the mean of d and multiplies
by its gain, an RMSNorm multiplies by its gain. The division by the residual's scale depends on the text and is left
out, and the norm's bias, equal for all latents, too. Logits are centred over the vocabulary (softmax does not see a
constant), so a value is the change of a logit against the average token, per unit of activation, at residual scale 1.
For mid-network latents this is the direct path only; most of their effect goes through later layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sae.errors import UserError

EFFECT_BYTES = 1 << 28  # of effects [latents, vocabulary] that exist at a time


@dataclass(frozen=True)
class Readout:
    """The linear part of final norm and unembedding: ``[d_model, vocab]`` and a sentence on what was folded."""

    W: torch.Tensor
    folded: bool
    note: str


def readout(model: Any) -> Readout:
    """Final norm and unembedding of a bridge as one linear map (see the module docstring).

    Raises:
        UserError: the model has no unembedding.
    """
    unembed = getattr(model, "W_U", None)
    if unembed is None:
        raise UserError(f"{type(model).__name__} has no unembedding, so direct logit effects are not defined.")
    W = unembed.detach().float()  # [d_model, vocab]
    norm, kind = _final_norm(model)
    if norm is None:
        return Readout(
            W - W.mean(1, keepdim=True),
            False,
            "final norm not folded: the model shows none; logits centred over the vocabulary",
        )
    W = norm.detach().float()[:, None] * W
    if kind == "LayerNorm":
        W = W - W.mean(0, keepdim=True)  # d - mean(d) before the gain, as a map on d
    W = W - W.mean(1, keepdim=True)
    centred = "mean removed and " if kind == "LayerNorm" else ""
    return Readout(
        W,
        True,
        f"final {kind} folded ({centred}gain applied, division by the residual's scale left out); logits centred over"
        " the vocabulary",
    )


def _final_norm(model: Any) -> tuple[torch.Tensor | None, str]:
    """Gain and kind of the model's final norm; (None, "") where there is none."""
    module = getattr(model, "ln_final", None)
    original = getattr(module, "original_component", module)
    weight = getattr(original, "weight", None)
    if weight is None:
        return None, ""
    return weight, "RMSNorm" if "rms" in type(original).__name__.lower() else "LayerNorm"


def direct_logit_effects(
    W_dec: torch.Tensor, read: Readout, n: int = 20, *, among: np.ndarray | None = None, block: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """Most promoted and most suppressed tokens of each decoder direction.

    Args:
        W_dec: [F, d_model] directions written into the residual stream.
        among: token ids that may be named (default: all). Values stay centred over the whole vocabulary.
        block: latents at a time, fewer where their effects would take more than ``EFFECT_BYTES``.

    Returns:
        ids int32 [F, 2, n] and values float32 [F, 2, n]; side 0 promoted (descending), 1 suppressed (ascending).
        Vocabularies smaller than ``n`` leave id -1 and NaN.
    """
    W = read.W if among is None else read.W[:, torch.from_numpy(np.asarray(among, np.int64))]
    f, vocab = W_dec.shape[0], W.shape[1]
    ids = np.full((f, 2, n), -1, np.int32)
    values = np.full((f, 2, n), np.nan, np.float32)
    take = min(n, vocab)
    block = max(1, min(block, EFFECT_BYTES // (4 * vocab)))
    with torch.inference_mode():
        for start in range(0, f, block):
            effect = W_dec[start : start + block].float() @ W
            for side, largest in ((0, True), (1, False)):
                top = effect.topk(take, dim=1, largest=largest)
                found = top.indices.cpu().numpy()
                ids[start : start + block, side, :take] = found if among is None else among[found]
                values[start : start + block, side, :take] = top.values.cpu().numpy()
    return ids, values
