"""What a training run is made of: frozen records, defaults that run. SAEs of every activation, and transcoders."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from sae.errors import ConfigError
from sae.init import InitConfig as InitConfig
from sae.strict import StrictConfig

if TYPE_CHECKING:
    from sae.activation import Activation
    from sae.model import SAE


class OptimizerDetails(StrictConfig):
    """Particulars of published recipes that the defaults do without."""

    end_factor: float = Field(
        0.0, ge=0, le=1, description="the decay of the learning rate ends at this share of its peak"
    )
    clip: float = Field(0.0, ge=0, description="largest norm of the gradient of all parameters together; 0 = as it is")
    encoder_rate: float = Field(1.0, ge=0, description="learning rate of the encoders relative to lr")
    bias_rate: float = Field(
        1.0, ge=0, description="learning rate of the decoder bias, which moves all latents at once, relative to lr"
    )
    error: Literal["mean", "per-length"] = Field(
        "mean", description="per-length: every row's squared error divided by the length of the centred row"
    )


class MeshConfig(StrictConfig):
    """How the processes of one run share the work (see :mod:`sae.parallel`); data x latents is their number."""

    data: int = Field(0, ge=0, description="parts of every batch; 0 = as many as there are processes for")
    latents: int = Field(1, ge=1, description="parts of the dictionary; must divide d_sae")


def derived_rate(d_sae: int) -> float:
    """The peak learning rate of a long run where none is given, for ``d_sae`` latents."""
    return min(0.01, 1e-3 * math.sqrt(2**14 / d_sae))


class TrainingConfig(StrictConfig):
    """The part that every kind of dictionary shares and the trainer reads.

    ``build()`` of a subclass returns the model to be trained (see :class:`sae.model.SAE`).
    """

    PLACES: ClassVar[frozenset[str]] = frozenset()  # fields that only say where something lies on this machine

    d_sae: int = Field(4096, ge=1, description="latents F")
    k: int = Field(32, ge=1, description="latents kept per row")
    seed: int = Field(0, description="of the initial directions; the data order has its own")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of weights and arithmetic")

    lr: float | None = Field(
        1e-3, gt=0, description="peak learning rate of Adam; None = min(0.01, 0.001 * sqrt(16384 / d_sae))"
    )
    warmup_steps: int = Field(100, ge=0, description="linear warm-up; at most a tenth of total_steps")
    decay_share: float = Field(
        0.2, ge=0, le=1, description="last share of the steps: linear decay to zero (needs total_steps)"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam: memory of the gradient's mean")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam: memory of its square")
    k_start: int = Field(0, ge=0, description="K-annealing: kept per row at step 0, 0 = off (needs total_steps)")
    k_anneal_share: float = Field(0.1, ge=0, le=1, description="share of the steps in which k_start falls to k")

    k_aux: int | None = Field(None, ge=0, description="dead latents used per row by the AuxK loss; None = k, 0 = off")
    aux_coefficient: float = Field(1 / 32, ge=0, description="weight of the AuxK loss")
    aux_every: int = Field(
        4,
        ge=1,
        description=(
            "AuxK looks at every n-th row of the batch: the same gradient in expectation, a fraction of the cost"
        ),
    )
    dead_after: int = Field(20_000, ge=1, description="rows without firing after which a latent counts as dead")

    revive: bool = Field(True, description="start latents anew that AuxK has not reached in ten times dead_after rows")

    outlier_factor: float = Field(
        10.0, ge=0, description="rows longer than this many median norms are left out; 0 = keep all"
    )
    backend: Literal["auto", "cpu", "fallback", "triton", "dense"] = Field(
        "auto", description="how the sparse step is computed; auto: by the device, dense: the plain reference"
    )
    tile_rows: int = Field(
        0, ge=0, description="rows per tile of the encoder; 0 = chosen so that a tile stays in cache"
    )
    bf16_preselect: bool = Field(
        False, description="find 2k candidates in bfloat16, decide among them in full precision"
    )
    products: Literal["float32", "tf32", "bf16"] = Field(
        "float32",
        description=(
            "factors of products: tf32 rounds them to 10 bits in all of them (NVIDIA GPUs), bf16 to 7 in the encoder's"
            " alone, whose result is rounded too; sums stay in float32"
        ),
    )
    compiled: bool = Field(False, description="the encoder's product through torch.compile (needs a compiler)")

    details: OptimizerDetails = Field(
        default_factory=OptimizerDetails, description="particulars of the optimiser, as a table of its own"
    )

    @model_validator(mode="after")
    def _contradictions(self) -> TrainingConfig:
        if self.k > self.d_sae:
            raise ConfigError(f"k = {self.k} latents per row cannot be kept of d_sae = {self.d_sae}. Use k <= d_sae.")
        if self.k_start and not self.k <= self.k_start <= self.d_sae:
            raise ConfigError(
                f"k_start = {self.k_start} must lie between k = {self.k} and d_sae = {self.d_sae} (or be 0 for no"
                " annealing)."
            )
        if self.dtype == "float64" and self.products != "float32":
            raise ConfigError(
                f"products = {self.products!r} multiplies with fewer digits than dtype = 'float64' keeps. Leave one"
                " out."
            )
        if self.products == "bf16" and self.bf16_preselect:
            raise ConfigError(
                "bf16_preselect = true recomputes the chosen latents in full precision, which products = 'bf16' does"
                " not have. Leave one out."
            )
        return self

    def _refuse_other_encoder(self, kind: str) -> None:
        """For kinds whose gradients go through a dense code, or that rank another one: their product is not the one
        that ``products = "bf16"`` and ``compiled`` change.
        """
        if self.products == "bf16" or self.compiled:
            asked = "compiled = true" if self.compiled else "products = 'bf16'"
            raise ConfigError(f"{asked} goes with topk, norm-topk, batchtopk and matryoshka, not {kind}. Leave it out.")

    @property
    def peak_lr(self) -> float:
        """``lr``, or the rate derived from the number of latents: proportional to its inverse root (Gao et al. 2024,
        figure 3).

        The constant is five times the one public libraries use for runs of billions of rows, and half of what gave the
        lowest held-out error in runs of 300 to 900 steps with 1,024 and 4,096 latents (see :meth:`rate`).
        """
        return derived_rate(self.d_sae) if self.lr is None else self.lr

    def rate(self, total_steps: int | None) -> float:
        """Peak learning rate of a run of ``total_steps`` (None: of unknown length)."""
        return self.peak_lr

    @classmethod
    def of_checkpoint(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values that a checkpoint holds, by the names that the settings have today."""
        return values

    def build(self) -> SAE:
        """The untrained model. Subclasses say which."""
        raise NotImplementedError(f"{type(self).__name__} does not say what to build")


SHORT, FASTER = 2000, 2.0  # steps below which a derived rate rises, and by how much at most
DERIVED = ("topk", "norm-topk")  # kinds whose rates are derived where none is given
# Beside a derived rate: at 400 steps of a real model's activations twice the rate leaves 16 % of the latents silent if
# encoders and decoder bias learn as fast as decoders, 2 % so, and the error falls further (``benchmarks/race.py``).
RELATIVE = {"encoder_rate": 0.6, "bias_rate": 0.1}


class TopKConfig(TrainingConfig):
    """A Top-K SAE (Gao et al. 2024, arXiv 2406.04093) on rows of width ``d_in``.

    Example:
        ``Trainer(TopKConfig(d_in=256, d_sae=4096, k=32)).step(x)``

    Raises:
        ConfigError: ``k > d_sae`` or an annealing start outside ``[k, d_sae]``.
    """

    d_in: int = Field(256, ge=1, description="width D of a row")
    lr: float | None = Field(
        None,
        gt=0,
        description=(
            "peak learning rate of Adam; None = min(0.01, 0.001 * sqrt(16384 / d_sae)), up to twice that in runs of"
            " fewer than 2,000 steps"
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _rates(cls, values: Any) -> Any:
        """Rates that are left out: derived ones, with those relative to them, for plain Top-K SAEs; else .001 for other
        kinds, transcoders and writes. ``lr = None`` asks for the rate by size of any of them.
        """
        if not isinstance(values, dict) or values.get("lr") is not None:
            return values
        asked = values.get("activation", "topk")
        kind = asked.get("kind", "topk") if isinstance(asked, dict) else getattr(asked, "kind", asked)
        if kind not in DERIVED or cls not in (TopKConfig, SAEConfig):
            return {"lr": 1e-3, **values} if issubclass(cls, SAEConfig) else values
        details = values.get("details", {})
        if isinstance(details, OptimizerDetails):
            details = details.model_dump(include=details.model_fields_set)
        return {**values, "details": {**RELATIVE, **details} if isinstance(details, dict) else details}

    def rate(self, total_steps: int | None) -> float:
        """A derived rate is higher in a run so short that it would end before it is near: by the root of
        :data:`SHORT` steps over its own, at most :data:`FASTER` (``benchmarks/race.py --real``: 400 steps).
        """
        if self.lr is not None or total_steps is None or type(self) not in (TopKConfig, SAEConfig):
            return self.peak_lr
        return min(0.01, self.peak_lr * min(FASTER, max(1.0, math.sqrt(SHORT / max(1, total_steps)))))

    def build(self) -> SAE:
        """An untrained :class:`sae.model.TopKSAE` whose directions come from ``seed``."""
        import torch

        from sae.model import TopKSAE

        return TopKSAE(self.d_in, self.d_sae, self.k, dtype=getattr(torch, self.dtype))


# which settings belong to which kind of activation
_SETTINGS: dict[str, tuple[str, ...]] = {
    "topk": ("prefixes",),
    "norm-topk": (),
    "batchtopk": ("decay", "prefixes"),
    "matryoshka": ("decay", "prefixes"),
    "l1": ("coefficient", "warmup"),
    "jumprelu": ("coefficient", "warmup", "penalty", "window", "threshold", "threshold_lr"),
}
# penalty -> coefficient, window and threshold on rows of length sqrt(d). Those of the L0 penalties see no scale but
# that of the rows: the window is relative to what a latent is worth where k of equal size make up a row, sqrt(d / k),
# and thresholds start where k latents are on
_JUMPS: dict[str, tuple[float, float, float | None]] = {
    "tanh-quad": (0.3, 4.0, 0.1),
    "tanh": (0.3, 4.0, 0.1),
    "l0": (3e-3, 0.084, None),
    "l0-target": (1.0, 0.084, None),
}
PREFIXES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


def settings_of(kind: str) -> tuple[str, ...]:
    """The settings of :class:`ActivationConfig` that go with a kind; none of an unknown one."""
    return _SETTINGS.get(kind, ())


class ActivationConfig(StrictConfig):
    """Which latents are on, and what that costs.

    In a recipe ``activation = "batchtopk"``, or a table with ``kind`` and settings.
    """

    kind: Literal["topk", "norm-topk", "batchtopk", "matryoshka", "l1", "jumprelu"] = Field(
        "topk",
        description=(
            "which latents are on: topk (the k largest of a row), norm-topk (of activation times decoder"
            " norm), batchtopk (of the whole batch), matryoshka (nested prefixes), l1, jumprelu (a"
            " threshold each)"
        ),
    )
    decay: float | None = Field(
        None, ge=0, lt=1, description="batchtopk: memory of the threshold used outside training; None = 0.99"
    )
    prefixes: tuple[float, ...] | None = Field(
        None,
        description=(
            "Matryoshka: shares of the latents that reconstruct alone, ascending; None = none, or 1/16 ... 1/2"
            " (matryoshka)"
        ),
    )
    coefficient: float | None = Field(
        None, ge=0, description="weight of the penalty; None = 2 (l1), by penalty (jumprelu)"
    )
    warmup: int | None = Field(
        None, ge=0, description="steps over which the penalty grows; None = as the learning rate (l1), 0 (jumprelu)"
    )
    penalty: Literal["tanh-quad", "tanh", "l0", "l0-target"] | None = Field(
        None, description="jumprelu; None = l0-target"
    )
    window: float | None = Field(
        None,
        gt=0,
        description="jumprelu: width of the straight-through window; None = 0.084 * sqrt(d_in / k) (l0), 4 (tanh)",
    )
    threshold: float | None = Field(
        None, gt=0, description="jumprelu: threshold at the start; None = where k latents are on (l0), 0.1 (tanh)"
    )
    threshold_lr: float | None = Field(
        None, gt=0, description="jumprelu: learning rate of log thresholds relative to lr; None = 2 (l0), 1"
    )

    @model_validator(mode="after")
    def _belongs(self) -> ActivationConfig:
        for name in self.model_fields_set - {"kind"}:
            if getattr(self, name) is not None and name not in _SETTINGS[self.kind]:
                kinds = [k for k, settings in _SETTINGS.items() if name in settings]
                raise ConfigError(f"activation {self.kind!r} has no {name}; it goes with {' or '.join(kinds)}.")
        if self.prefixes is not None and (
            list(self.prefixes) != sorted(set(self.prefixes)) or not all(0 < p < 1 for p in self.prefixes)
        ):
            raise ConfigError(f"prefixes = {list(self.prefixes)} must be shares between 0 and 1 in ascending order.")
        return self

    def build(self, k: int, d_sae: int, width: int) -> Activation:
        """The activation object for rows of some width."""
        from sae.activation import BatchTopK, NormTopK, TopK
        from sae.matryoshka import MatryoshkaBatchTopK, MatryoshkaTopK
        from sae.penalised import L1, JumpReLU

        shares = self.prefixes or (PREFIXES if self.kind == "matryoshka" else ())
        prefixes = tuple(sorted({max(1, round(p * d_sae)) for p in shares}))
        decay = 0.99 if self.decay is None else self.decay
        if self.kind == "topk":
            return MatryoshkaTopK(k, prefixes=prefixes) if prefixes else TopK(k)
        if self.kind == "norm-topk":
            return NormTopK(k)
        if self.kind in ("batchtopk", "matryoshka"):
            return MatryoshkaBatchTopK(k, decay=decay, prefixes=prefixes) if prefixes else BatchTopK(k, decay=decay)
        if self.kind == "l1":
            return L1(k, coefficient=2.0 if self.coefficient is None else self.coefficient, warmup=self.warmup)
        penalty = self.penalty or "l0-target"
        coefficient, window, threshold = _JUMPS[penalty]
        if penalty.startswith("l0"):
            window *= math.sqrt(width / k)
        return JumpReLU(
            k,
            coefficient=coefficient if self.coefficient is None else self.coefficient,
            warmup=self.warmup or 0,
            window=self.window or window,
            threshold=self.threshold or threshold,
            threshold_rate=self.threshold_lr or (2.0 if penalty.startswith("l0") else 1.0),
            penalty=penalty,
        )


class SAEConfig(TopKConfig):
    """An SAE with any activation: ``SAEConfig(d_in=256, d_sae=4096, k=32, activation="batchtopk")``.

    Raises:
        ConfigError: a setting that does not go with the activation; the message names those it goes with.
    """

    lr: float | None = Field(
        None,
        gt=0,
        description=(
            "peak learning rate of Adam; None = min(0.01, 0.001 * sqrt(16384 / d_sae)), up to twice that for topk and"
            " norm-topk in runs of fewer than 2,000 steps; left out, 0.001 for other kinds, transcoders and writes"
        ),
    )
    activation: ActivationConfig = Field(
        default_factory=ActivationConfig,
        description="which latents are on: a kind, or a table with kind and its settings",
    )
    start: InitConfig = Field(default_factory=InitConfig, description="how weights begin, as a table of its own")

    @field_validator("activation", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    def rate(self, total_steps: int | None) -> float:
        return super().rate(total_steps) if self.activation.kind in DERIVED else self.peak_lr

    @model_validator(mode="after")
    def _together(self) -> SAEConfig:
        kind = self.activation.kind
        if kind in ("l1", "jumprelu"):
            self._refuse_other_encoder(kind)
        if self.k_start and kind in ("l1", "jumprelu"):
            raise ConfigError(
                f"k_start = {self.k_start} anneals a number of latents, which {kind} does not fix. Use"
                " activation.warmup."
            )
        if kind in ("topk", "batchtopk", "matryoshka") and self.start.norm != 1.0:
            raise ConfigError(
                f"start.norm = {self.start.norm}: decoders of {kind} have norm 1. Use activation = 'norm-topk', l1 or"
                " jumprelu."
            )
        return self

    def build(self) -> SAE:
        """The untrained dictionary."""
        import torch

        from sae.model import empty_sae

        model = empty_sae(
            self.d_in,
            self.d_sae,
            self.activation.build(self.k, self.d_sae, self.d_in),
            dtype=getattr(torch, self.dtype),
        )
        model.start, model.centred = self.start, self.start.pre_bias
        return model


class TranscoderConfig(SAEConfig):
    """A transcoder: reads rows of width ``d_in``, reconstructs others of width ``d_out`` (Dunefsky et al. 2024, arXiv
    2406.11944).

    Training rows are both side by side, [B, d_in + d_out].
    """

    d_out: int = Field(0, ge=0, description="width of what is reconstructed; 0 = d_in")
    skip: bool = Field(False, description="a linear connection past the latents (Paulo et al. 2025, arXiv 2501.18823)")

    @model_validator(mode="after")
    def _not_tied(self) -> TranscoderConfig:
        if self.start.encoder == "tied":
            raise ConfigError(
                "start.encoder = 'tied' makes the encoder the decoder's transpose, and a transcoder reads at one"
                " place and writes at another. Use 'fitted'."
            )
        return self

    def build(self) -> SAE:
        """An untrained :class:`sae.transcoder.Transcoder`."""
        import torch

        from sae.transcoder import Transcoder

        activation = self.activation.build(self.k, self.d_sae, self.d_out or self.d_in)
        out = Transcoder(
            self.d_in,
            self.d_sae,
            activation,
            d_out=self.d_out or None,
            skip=self.skip,
            dtype=getattr(torch, self.dtype),
        )
        out.start = self.start
        return out


class WriteConfig(SAEConfig):
    """A dictionary of writes: its rows are what a recurrent layer adds to its state (see :mod:`sae.writes`).

    Training rows are keys and values side by side, [B, heads * (keys + values)]; ``d_in`` is heads * keys * values.
    """

    details: OptimizerDetails = Field(
        default_factory=lambda: OptimizerDetails(bias_rate=0.0),
        description="particulars of the optimiser, as a table of its own",
    )
    start: InitConfig = Field(
        default_factory=lambda: InitConfig(bias="zero", pre_bias=False),
        description="how weights begin, as a table of its own",
    )
    heads: int = Field(1, ge=1, description="heads H of the layer")
    keys: int = Field(16, ge=1, description="keys K of a head's state")
    values: int = Field(16, ge=1, description="values V of a head's state")

    @model_validator(mode="after")
    def _writes(self) -> WriteConfig:
        size = self.heads * self.keys * self.values
        if self.d_in != size:
            raise ConfigError(f"d_in = {self.d_in} is not heads * keys * values = {size}. Set d_in to their product.")
        if self.activation.kind not in ("topk", "norm-topk"):
            raise ConfigError(
                f"activation {self.activation.kind!r} does not go with a dictionary of writes. Use topk or norm-topk."
            )
        if self.start.bias != "zero" or self.start.pre_bias or self.details.bias_rate:
            raise ConfigError(
                "a dictionary of writes has no decoder bias, because its reconstructions are sums of rank-one"
                " matrices alone. Use start.bias = 'zero', start.pre_bias = false and details.bias_rate = 0."
            )
        return self

    def build(self) -> SAE:
        """An untrained :class:`sae.writes.WriteSAE`."""
        import torch

        from sae.writes import WriteSAE

        out = WriteSAE(
            (self.heads, self.keys, self.values),
            self.d_sae,
            self.activation.build(self.k, self.d_sae, self.d_in),
            dtype=getattr(torch, self.dtype),
        )
        out.start = self.start
        return out
