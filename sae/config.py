"""What a training run of a Top-K SAE is made of: one frozen record, defaults that run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from sae.errors import ConfigError
from sae.strict import StrictConfig

if TYPE_CHECKING:
    from sae.model import SAE


class TrainingConfig(StrictConfig):
    """The part that every kind of dictionary shares and the trainer reads.

    ``build()`` of a subclass returns the model to be trained (see :class:`sae.model.SAE`).
    """

    d_sae: int = Field(4096, ge=1, description="latents F")
    k: int = Field(32, ge=1, description="latents kept per row")
    seed: int = Field(0, description="of the initial directions; the data order has its own")
    dtype: Literal["float32", "float64"] = "float32"

    lr: float = Field(1e-3, gt=0, description="peak learning rate of Adam")
    warmup_steps: int = Field(100, ge=0, description="linear warm-up; at most a tenth of total_steps")
    decay_share: float = Field(0.2, ge=0, le=1, description="last share of the steps: linear decay to zero (needs total_steps)")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    k_start: int = Field(0, ge=0, description="K-annealing: kept per row at step 0, 0 = off (needs total_steps)")
    k_anneal_share: float = Field(0.1, ge=0, le=1, description="share of the steps in which k_start falls to k")

    k_aux: int | None = Field(None, ge=0, description="dead latents used per row by the AuxK loss; None = k, 0 = off")
    aux_coefficient: float = Field(1 / 32, ge=0)
    aux_every: int = Field(
        4, ge=1, description="AuxK looks at every n-th row of the batch: the same gradient in expectation, a fraction of the cost"
    )
    dead_after: int = Field(20_000, ge=1, description="rows without firing after which a latent counts as dead")

    revive: bool = Field(True, description="start latents anew that AuxK has not reached in ten times dead_after rows")

    outlier_factor: float = Field(10.0, ge=0, description="rows longer than this many median norms are left out; 0 = keep all")
    backend: Literal["auto", "cpu", "fallback", "triton", "dense"] = "auto"
    tile_rows: int = Field(0, ge=0, description="rows per tile of the encoder; 0 = chosen so that a tile stays in cache")
    bf16_preselect: bool = Field(False, description="find 2k candidates in bfloat16, decide among them in full precision")

    @model_validator(mode="after")
    def _contradictions(self) -> TrainingConfig:
        if self.k > self.d_sae:
            raise ConfigError(f"k = {self.k} latents per row cannot be kept of d_sae = {self.d_sae}. Use k <= d_sae.")
        if self.k_start and not self.k <= self.k_start <= self.d_sae:
            raise ConfigError(
                f"k_start = {self.k_start} must lie between k = {self.k} and d_sae = {self.d_sae} (or be 0 for no annealing)."
            )
        return self

    def build(self) -> SAE:
        """The untrained model. Subclasses say which."""
        raise NotImplementedError(f"{type(self).__name__} does not say what to build")


class TopKConfig(TrainingConfig):
    """A Top-K SAE (Gao et al. 2024, arXiv 2406.04093) on rows of width ``d_in``.

    Example:
        ``Trainer(TopKConfig(d_in=256, d_sae=4096, k=32)).step(x)``

    Raises:
        ConfigError: ``k > d_sae`` or an annealing start outside ``[k, d_sae]``.
    """

    d_in: int = Field(256, ge=1, description="width D of a row")

    def build(self) -> SAE:
        """An untrained :class:`sae.model.TopKSAE` whose directions come from ``seed``."""
        import torch

        from sae.model import TopKSAE

        return TopKSAE(self.d_in, self.d_sae, self.k, dtype=getattr(torch, self.dtype))
