"""What a training run of a crosscoder is made of, and the published settings by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from sae import presets
from sae.config import InitConfig, TrainingConfig
from sae.errors import ConfigError
from sae.strict import nearest

if TYPE_CHECKING:
    from crosscoders.model import Crosscoder


class CrosscoderConfig(TrainingConfig):
    """A crosscoder on the concatenation of its sources; trained by the same ``sae.Trainer`` as an SAE.

    Example:
        ``Trainer(CrosscoderConfig(widths=[128, 128, 128], d_sae=1024, k=16)).step(x)`` with x [B, 384]

    Raises:
        ConfigError: contradictions, each with its remedy.
    """

    widths: tuple[int, ...] = Field((128, 128), min_length=1, description="width D_s of every source, in order")
    sources: tuple[str, ...] = Field((), description="their names")
    activation: Literal["topk", "batchtopk", "l1", "jumprelu"] = "topk"
    gate: Literal["shared", "per-source", "own-magnitude"] = Field(
        "shared",
        description="per-source: jumprelu, each source its own gate; own-magnitude: topk, one support, f per source",
    )
    coefficient: float | None = Field(None, ge=0, description="weight of the penalty; None = 2 (l1), 0.3 (jumprelu)")
    penalty_warmup: int = Field(
        0, ge=0, description="steps over which the penalty grows from 0; 0 = as the learning rate (l1), none (jumprelu)"
    )
    threshold: float = Field(0.1, gt=0, description="jumprelu: initial threshold")
    threshold_lr: float = Field(0.1, gt=0, description="jumprelu: learning rate of log thresholds relative to lr")
    window: float = Field(4.0, gt=0, description="jumprelu: width of the straight-through window")
    scaling: Literal["centred", "mean-norm"] = Field(
        "centred", description="every source to length sqrt(D_s): centred rms, or mean norm"
    )
    start_norm: float = Field(
        1.0, gt=0, description="norm of a latent's row at each source at the start (l1, jumprelu)"
    )
    shared_start: bool = Field(True, description="one random direction per latent at all sources of one width")
    shared_latents: int = Field(0, ge=0, description="the first so many latents have one decoder row for all sources")
    shared_penalty: float = Field(0.15, ge=0, le=1, description="penalty of those, relative to the others")
    dedicated: int = Field(0, ge=0, description="so many latents per source that only this source may use")

    @model_validator(mode="after")
    def _sources(self) -> CrosscoderConfig:
        if min(self.widths) < 1:
            raise ConfigError(f"widths = {list(self.widths)}: every source needs a width of at least 1.")
        if self.sources and len(self.sources) != len(self.widths):
            raise ConfigError(f"{len(self.sources)} sources for {len(self.widths)} widths. Give one name per width.")
        if self.shared_latents and len(set(self.widths)) > 1:
            raise ConfigError(f"shared_latents tie decoder rows, which needs equal widths, not {list(self.widths)}.")
        if self.shared_latents + self.dedicated * len(self.widths) > self.d_sae:
            raise ConfigError(
                f"shared_latents = {self.shared_latents} and dedicated = {self.dedicated} for {len(self.widths)}"
                f" sources exceed d_sae = {self.d_sae}."
            )
        if self.gate == "per-source" and self.activation != "jumprelu":
            raise ConfigError(f"gate = 'per-source' goes with activation = 'jumprelu', not {self.activation!r}.")
        if self.gate == "own-magnitude" and self.activation != "topk":
            raise ConfigError(f"gate = 'own-magnitude' goes with activation = 'topk', not {self.activation!r}.")
        if self.gate == "own-magnitude" and self.bf16_preselect:
            raise ConfigError("bf16_preselect = true ranks one code for all sources. Leave it out with own-magnitude.")
        return self

    def build(self) -> Crosscoder:
        """The untrained crosscoder."""
        import torch

        from crosscoders.gates import OwnMagnitude, PerSource
        from crosscoders.model import Crosscoder
        from sae.activation import BatchTopK, NormTopK, TopK
        from sae.penalised import L1, JumpReLU

        k = self.k
        if self.activation == "topk":
            activation: TopK = OwnMagnitude(k) if self.gate == "own-magnitude" else NormTopK(k)
        elif self.activation == "batchtopk":
            activation = BatchTopK(k)
        elif self.activation == "l1":
            activation = L1(
                k, coefficient=2.0 if self.coefficient is None else self.coefficient, warmup=self.penalty_warmup or None
            )
        else:
            activation = (PerSource if self.gate == "per-source" else JumpReLU)(
                k,
                coefficient=0.3 if self.coefficient is None else self.coefficient,
                warmup=self.penalty_warmup,
                window=self.window,
                threshold=self.threshold,
                threshold_rate=self.threshold_lr,
            )
        cc = Crosscoder(self.widths, self.d_sae, activation, sources=self.sources, dtype=getattr(torch, self.dtype))
        cc.scaling, cc.shared_start, cc.start = self.scaling, self.shared_start, InitConfig(norm=self.start_norm)
        cc.shared_latents, cc.shared_penalty, cc.dedicated = self.shared_latents, self.shared_penalty, self.dedicated
        return cc


FEW_STEPS = "few-steps"
DEAD_AFTER = 50_000  # rows without firing after which a latent of a short run counts as dead

# Published settings; sizes, widths and step counts are left to the caller.
PRESETS: dict[str, dict[str, Any]] = {
    # the paper's formulas (arXiv 2509.17196): one gate for all snapshots, tanh-quad penalty
    "evolution-paper": {
        "activation": "jumprelu",
        "gate": "shared",
        "scaling": "mean-norm",
        "lr": 5e-5,
        "penalty_warmup": 5000,
        "start_norm": 0.5,
        "k_aux": 0,
    },
    # its published code: a gate per snapshot with thresholds shared between them
    "evolution-code": {
        "activation": "jumprelu",
        "gate": "per-source",
        "scaling": "mean-norm",
        "lr": 5e-5,
        "penalty_warmup": 5000,
        "start_norm": 0.5,
        "k_aux": 0,
    },
    # Anthropic 2024, Sparse Crosscoders; starting norm as in the public model-diffing replications
    "anthropic-l1": {
        "activation": "l1",
        "scaling": "mean-norm",
        "lr": 5e-5,
        "penalty_warmup": 1000,
        "start_norm": 0.1,
        "k_aux": 0,
    },
    # Minder et al. 2025 (arXiv 2504.02922)
    "batchtopk": {"activation": "batchtopk", "lr": 1e-4},
}


def preset(name: str, **values: Any) -> CrosscoderConfig:
    """A setting by name, with your sizes: ``preset("anthropic-l1", widths=[768, 768], d_sae=8192)``.

    ``few-steps`` is that of :mod:`sae.presets` at a fifth of its rate: a code that many sources share has more to lose
    by latents that die (``benchmarks/gap.py``, 10 and 16 snapshots). The others are published.

    Raises:
        ConfigError: no such preset (the nearest is named).
    """
    if name == FEW_STEPS:
        sized = CrosscoderConfig(**values)
        few = presets.preset(FEW_STEPS, d_in=sum(sized.widths), d_sae=sized.d_sae, k=sized.k)
        return CrosscoderConfig(**{"dead_after": DEAD_AFTER, **few, "lr": few["lr"] / 5, **values})
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} does not exist ({nearest(name, [FEW_STEPS, *PRESETS])})")
    return CrosscoderConfig(**{**PRESETS[name], **values})
