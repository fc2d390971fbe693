"""The activation of a dictionary: which pre-activations survive, what that costs in the loss, how it folds.

A variant of the SAE is one such object; the model, the step and the trainer stay the same. Here are those that keep a
fixed number of latents, and the plain threshold; :mod:`sae.penalised` has those that pay for their sparsity in the
loss, :mod:`sae.matryoshka` nested prefixes.

n_i is the norm of latent i's decoder row in training scale (summed over the sources of a crosscoder), z its
pre-activation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from sae.batch import fullest
from sae.step import SparseStep

if TYPE_CHECKING:
    from torch import Tensor

    from sae.encode import StepPlan
    from sae.protocols import Weights

Reconstruction = tuple["Tensor", "Tensor", "Tensor", "Tensor", "Tensor | None"]
"""(y [B, D], aux_y, values [B, K], indices [B, K], penalty or None) of rows in training scale, with gradients."""


class Activation(Protocol):
    """What the model and the trainer ask of an activation.

    ``unit_decoders``: decoder rows keep unit norm while training. ``folds_norms``: folding moves n_i into the encoder.
    """

    @property
    def architecture(self) -> str:
        """Its name in ``cfg.json``."""

    @property
    def unit_decoders(self) -> bool: ...

    @property
    def folds_norms(self) -> bool: ...

    def attach(self, model: Weights) -> None:
        """Give a new model the buffers and parameters this activation needs."""

    def begin(self, model: Weights, z_BF: Tensor) -> None:
        """Take from the first rows' pre-activations what of the activation's own depends on them."""

    def raise_thresholds(self, model: Weights, factor: float) -> None:
        """Follow encoders that have been multiplied by a common factor since :meth:`begin`."""

    def selection_weights(self, model: Weights) -> Tensor | None:
        """[F] positive factors under which latents compete, or None: all alike. No gradient flows through them."""

    def thresholds(self, model: Weights) -> Tensor | None:
        """[F] what pre-activations must exceed outside training, or None: a fixed number of latents is kept."""

    def keep(self, k_now: int) -> int:
        """How many latents per row the step keeps, given the scheduled ``k_now``."""

    def reconstruct(self, model: Weights, x_BD: Tensor, plan: StepPlan, target_BD: Tensor) -> Reconstruction:
        """The training step's forward pass on rows in training scale.

        ``target_BD`` is ``x_BD``, but for transcoders.
        """

    def fold(self, factor_F: Tensor) -> Activation:
        """The same activation after pre-activation f has been multiplied by ``factor_F[f]``."""

    def cfg(self) -> dict[str, Any]:
        """Its entries of ``cfg.json``, in SAELens' names."""


@dataclass(frozen=True)
class TopK:
    """Keep the k largest pre-activations of each row, negative ones count as zero (Gao et al. 2024, eq. 3)."""

    k: int
    architecture: str = "topk"
    unit_decoders: ClassVar[bool] = True
    folds_norms: ClassVar[bool] = False

    def attach(self, model: Weights) -> None:
        return None

    def begin(self, model: Weights, z_BF: Tensor) -> None:
        return None

    def raise_thresholds(self, model: Weights, factor: float) -> None:
        return None

    def selection_weights(self, model: Weights) -> Tensor | None:
        return None

    def thresholds(self, model: Weights) -> Tensor | None:
        return None

    def keep(self, k_now: int) -> int:
        return k_now

    def reconstruct(self, model: Weights, x_BD: Tensor, plan: StepPlan, target_BD: Tensor) -> Reconstruction:
        plan = replace(plan, centred=model.centred)
        return *SparseStep.apply(x_BD, model.enc_FD, model.b_enc, model.dec_FD, model.b_dec, plan), None

    def fold(self, factor_F: Tensor) -> Activation:
        """Unchanged: ``fold`` is only exact where all factors agree, which :meth:`sae.model.SAE.folded` sees to."""
        return self

    def cfg(self) -> dict[str, Any]:
        return {"k": self.k, "rescale_acts_by_decoder_norm": False}


@dataclass(frozen=True)
class NormTopK(TopK):
    """The k largest z_i n_i of each row, decoder norms free (Llama Scope, arXiv 2410.20526, eq. 5).

    Folding multiplies n_i into the encoder and leaves a plain Top-K.
    """

    unit_decoders: ClassVar[bool] = False
    folds_norms: ClassVar[bool] = True

    def selection_weights(self, model: Weights) -> Tensor | None:
        return model.decoder_norms().sum(0)

    def fold(self, factor_F: Tensor) -> Activation:
        return TopK(self.k)


@dataclass(frozen=True)
class BatchTopK(NormTopK):
    """The k * B largest z_i n_i of the batch (Bussmann et al. 2024, arXiv 2412.06410; crosscoders: Minder et al. 2025,
    2504.02922).

    Outside training a latent is on above a running minimum of the kept scores, whose memory is ``decay``.
    """

    decay: float = 0.99
    unit_decoders: ClassVar[bool] = True
    folds_norms: ClassVar[bool] = False

    def attach(self, model: Weights) -> None:
        model.register_buffer("level", torch.zeros((), dtype=model.enc_FD.dtype))
        model.candidates = 4 * self.k

    def thresholds(self, model: Weights) -> Tensor | None:
        if not bool(model.level > 0):  # before the first step
            return None
        return model.level / model.decoder_norms().sum(0).clamp_min(1e-12)

    def reconstruct(self, model: Weights, x_BD: Tensor, plan: StepPlan, target_BD: Tensor) -> Reconstruction:
        out = super().reconstruct(model, x_BD, replace(plan, candidates=model.candidates), target_BD)
        values, indices = out[2].detach(), out[3]
        n = fullest(values > 0, plan.ranks)
        model.candidates = n + n // 2 + 8
        if model.training:
            self._follow(model, values, indices, plan)
        return out

    @torch.no_grad()
    def _follow(self, model: Weights, values: Tensor, indices: Tensor, plan: StepPlan) -> None:
        assert plan.selection_F is not None
        scores = torch.where(values > 0, values * plan.selection_F[indices], torch.inf)
        least = -plan.ranks.all_reduce_max(-scores.amin() if len(scores) else scores.new_full((), -torch.inf))
        if bool(least.isfinite()):
            model.level.copy_(least if model.level == 0 else self.decay * model.level + (1 - self.decay) * least)

    def fold(self, factor_F: Tensor) -> Activation:
        return Threshold(self.k)


@dataclass(frozen=True)
class Threshold(TopK):
    """f = z 1[z > threshold], z rectified: JumpReLU in use, or a ReLU (``standard``). ``k`` is the nominal L0 (0: not
    known).
    """

    k: int = 0
    architecture: str = "jumprelu"
    unit_decoders: ClassVar[bool] = False

    def attach(self, model: Weights) -> None:
        model.register_buffer("threshold_F", torch.zeros(model.d_sae, dtype=model.enc_FD.dtype))

    def thresholds(self, model: Weights) -> Tensor | None:
        return model.threshold_F

    def fold(self, factor_F: Tensor) -> Activation:
        """What is left of any gate once its thresholds are folded (see :meth:`sae.model.SAE.folded`): the thresholds
        alone.
        """
        return Threshold(self.k, self.architecture)

    def cfg(self) -> dict[str, Any]:
        """No entries of its own; thresholds are a tensor."""
        return {}
