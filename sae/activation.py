"""The activation of a dictionary: which pre-activations survive, what that costs in the loss, how it folds.

A variant of the SAE is one such object; the model, the step and the trainer stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from sae.model import SAE


class Activation(Protocol):
    """What the model and the trainer ask of an activation."""

    @property
    def architecture(self) -> str:
        """Its name in ``cfg.json``."""

    def selection_weights(self, model: SAE) -> Tensor | None:
        """[F] positive factors under which latents compete, or None: all alike. No gradient flows through them."""

    def keep(self, k_now: int) -> int:
        """How many latents per row the step keeps, given the scheduled ``k_now``."""

    def penalty(self, values_BK: Tensor) -> Tensor | None:
        """A term of the loss beside the reconstruction error, or None."""

    def fold(self, factor_F: Tensor) -> Activation:
        """The same activation after pre-activation f has been multiplied by ``factor_F[f]``."""

    def cfg(self) -> dict[str, Any]:
        """Its entries of ``cfg.json``, in SAELens' names."""


@dataclass(frozen=True)
class TopK:
    """Keep the k largest pre-activations of each row, negative ones count as zero (Gao et al. 2024, eq. 3)."""

    k: int
    architecture: str = "topk"

    def selection_weights(self, model: SAE) -> Tensor | None:
        return None

    def keep(self, k_now: int) -> int:
        return k_now

    def penalty(self, values_BK: Tensor) -> Tensor | None:
        return None

    def fold(self, factor_F: Tensor) -> Activation:
        """Unchanged: ``fold`` is only exact where all factors agree, which :meth:`sae.model.SAE.folded` sees to."""
        return self

    def cfg(self) -> dict[str, Any]:
        return {"k": self.k, "rescale_acts_by_decoder_norm": False}
