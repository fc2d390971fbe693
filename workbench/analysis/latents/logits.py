"""Direct logit effects of decoder directions: what a latent says to the unembedding if no later layer touches it.

For a direction d the final norm is folded in as far as it is linear: a LayerNorm subtracts the mean of d and multiplies
by its gain, an RMSNorm multiplies by its gain (which gain, the norm itself is asked: :mod:`workbench.models.head`). The
division by the residual's scale depends on the text and is left out, and so are a soft cap on the logits and the norm's
bias, equal for all latents. Logits are centred over the vocabulary (softmax does not see a constant), so a value is the
change of a logit against the average token, per unit of activation, at residual scale 1.
For mid-network latents this is the direct path only; most of their effect goes through later layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.models.head import head_of

EFFECT_BYTES = 1 << 28  # of effects [latents, vocabulary] that exist at a time


@dataclass(frozen=True)
class Readout:
    """The linear part of final norm and unembedding: ``[d_model, vocab]`` and a sentence on what was folded."""

    W: torch.Tensor
    folded: bool
    note: str


def readout(model: Any) -> Readout:
    """Final norm and unembedding of a bridge as one linear map (see the module docstring and
    :mod:`workbench.models.head`).

    Raises:
        UserError: the model has no unembedding, or a head that is no such map.
    """
    head = head_of(model)
    W = head.linear()
    return Readout(W - W.mean(1, keepdim=True), head.gain is not None, head.note())


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
