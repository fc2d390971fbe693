"""What a training run of a crosscoder is made of, and the published settings by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from sae import presets
from sae.config import ActivationConfig, InitConfig, TrainingConfig, settings_of
from sae.errors import ConfigError
from sae.strict import StrictConfig, nearest

if TYPE_CHECKING:
    from crosscoders.model import Crosscoder
    from sae.activation import Activation


KINDS = ("topk", "batchtopk", "l1", "jumprelu")
# what jumprelu means for a crosscoder where nothing is said (arXiv 2509.17196)
PUBLISHED_JUMPS: dict[str, Any] = {"penalty": "tanh-quad", "threshold_lr": 0.1}

# names of 0.1 -> (table, name) of today, default of 0.1
_RENAMED: dict[str, tuple[str, str, Any]] = {
    "coefficient": ("activation", "coefficient", None),
    "penalty_warmup": ("activation", "warmup", 0),
    "threshold": ("activation", "threshold", 0.1),
    "threshold_lr": ("activation", "threshold_lr", 0.1),
    "window": ("activation", "window", 4.0),
    "scaling": ("start", "scaling", "centred"),
    "start_norm": ("start", "norm", 1.0),
}


def by_todays_names(values: Mapping[str, Any], under: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings of a crosscoder by the names that :class:`sae.SAEConfig` has for them: ``penalty_warmup`` of earlier
    files is ``activation.warmup``, ``start_norm`` is ``start.norm``, ``activation = "l1"`` is its ``kind``.

    A setting of an activation that is not the one at hand was without effect: at its default, as files that list every
    setting have it, it is left out; otherwise it stays, to be refused by name.

    Args:
        under: settings that these will be laid over (a preset): a single setting of the activation changes that of
            ``under``.
    """
    out = {name: value for name, value in values.items() if name not in _RENAMED}
    under = under or {}
    if isinstance(out.get("activation"), str):
        out["activation"] = {"kind": out["activation"]}
    for old, (table, name, default) in _RENAMED.items():
        if old not in values:
            continue
        below = out.get(table, under.get(table, {}))
        given = below.model_dump(exclude_none=True) if isinstance(below, StrictConfig) else dict(below)
        value = values[old]
        if table == "activation" and value == default and name not in settings_of(given.get("kind", "topk")):
            continue
        if name == "warmup":
            value = value or None  # 0 steps were none, or for l1 those of the learning rate: what None means
        if table in values and given.get(name) not in (None, value):
            raise ConfigError(f"{old} = {value!r} and {table}.{name} = {given[name]!r} are one setting. Leave one out.")
        out[table] = given | {name: value}
    return out


class CrosscoderConfig(TrainingConfig):
    """A crosscoder on the concatenation of its sources; trained by the same ``sae.Trainer`` as an SAE.

    Example:
        ``Trainer(CrosscoderConfig(widths=[128, 128, 128], d_sae=1024, k=16)).step(x)`` with x [B, 384]

    Raises:
        ConfigError: contradictions, each with its remedy.
    """

    widths: tuple[int, ...] = Field((128, 128), min_length=1, description="width D_s of every source, in order")
    sources: tuple[str, ...] = Field((), description="their names")
    activation: ActivationConfig = Field(
        default_factory=ActivationConfig,
        description="which latents are on, and what that costs: topk (by norms), batchtopk, l1, jumprelu",
    )
    gate: Literal["shared", "per-source", "own-magnitude"] = Field(
        "shared",
        description="per-source: jumprelu, each source its own gate; own-magnitude: topk, one support, f per source",
    )
    start: InitConfig = Field(
        default_factory=InitConfig,
        description="scaling of every source, and norm of a latent's row at each source (batchtopk, l1, jumprelu)",
    )
    shared_start: bool = Field(True, description="one random direction per latent at all sources of one width")
    shared_latents: int = Field(0, ge=0, description="the first so many latents have one decoder row for all sources")
    shared_penalty: float = Field(0.15, ge=0, le=1, description="penalty of those, relative to the others")
    dedicated: int = Field(0, ge=0, description="so many latents per source that only this source may use")

    @model_validator(mode="before")
    @classmethod
    def _by_todays_names(cls, values: Any) -> Any:
        return by_todays_names(values) if isinstance(values, dict) else values

    @classmethod
    def of_checkpoint(cls, values: dict[str, Any]) -> dict[str, Any]:
        return dict(cls.model_validate(values).model_dump(mode="json")) if _RENAMED.keys() & values.keys() else values

    @model_validator(mode="after")
    def _activation(self) -> CrosscoderConfig:
        activation, plain = self.activation, InitConfig()
        if activation.kind not in KINDS or activation.prefixes or activation.decay is not None:
            raise ConfigError(
                f"activation = {activation.model_dump(exclude_none=True)} is not known for a crosscoder. Use"
                f" {', '.join(KINDS[:-1])} or {KINDS[-1]}, without decay or prefixes."
            )
        if activation.penalty in ("l0", "l0-target"):
            raise ConfigError(
                f"activation.penalty = {activation.penalty!r} takes no account of the decoder norms, from which a"
                " crosscoder's results are read. Use tanh-quad or tanh."
            )
        for name in ("encoder", "bias", "pre_bias"):
            if getattr(self.start, name) != getattr(plain, name):
                raise ConfigError(
                    f"start.{name} = {getattr(self.start, name)!r}: a crosscoder always starts with"
                    f" {getattr(plain, name)!r}. Leave it out."
                )
        if self.start.norm == "search" or (activation.kind == "topk" and self.start.norm != 1.0):
            raise ConfigError(
                f"start.norm = {self.start.norm!r}: decoder rows of topk have norm 1, those of batchtopk, l1 and"
                " jumprelu a number. Leave it out, or give one of these a number."
            )
        return self

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
                f" sources exceed d_sae = {self.d_sae}. Raise d_sae, or lower one of the two."
            )
        if self.gate == "per-source" and self.activation.kind != "jumprelu":
            raise ConfigError(f"gate = 'per-source' goes with activation = 'jumprelu', not {self.activation.kind!r}.")
        if self.gate == "own-magnitude" and self.activation.kind != "topk":
            raise ConfigError(f"gate = 'own-magnitude' goes with activation = 'topk', not {self.activation.kind!r}.")
        if self.gate == "own-magnitude" and self.bf16_preselect:
            raise ConfigError(
                "bf16_preselect = true chooses latents by one activation for all sources, and gate = 'own-magnitude'"
                " has one per source. Leave one of them out."
            )
        if self.gate != "shared" or self.activation.kind in ("l1", "jumprelu"):
            self._refuse_other_encoder(self.activation.kind if self.gate == "shared" else self.gate)
        return self

    def build(self) -> Crosscoder:
        """The untrained crosscoder."""
        import torch

        from crosscoders.gates import OwnMagnitude, PerSource
        from crosscoders.model import Crosscoder
        from sae.activation import BatchTopK, NormTopK
        from sae.penalised import JumpReLU

        k, kind = self.k, self.activation.kind
        if self.gate == "own-magnitude":
            activation: Activation = OwnMagnitude(k)
        elif kind == "topk":
            activation = NormTopK(k)
        elif kind == "batchtopk":
            activation = BatchTopK(k)
        else:
            jumps = self.activation
            if kind == "jumprelu":  # as published, where an SAE has the L0 penalties
                said = {n: v for n in PUBLISHED_JUMPS if (v := getattr(jumps, n)) is not None}
                jumps = jumps.model_copy(update=PUBLISHED_JUMPS | said)
            activation = jumps.build(k, self.d_sae, sum(self.widths))
            if isinstance(activation, JumpReLU) and self.gate == "per-source":
                activation = PerSource(
                    **{f.name: getattr(activation, f.name) for f in fields(activation) if f.name != "architecture"}
                )
        cc = Crosscoder(self.widths, self.d_sae, activation, sources=self.sources, dtype=getattr(torch, self.dtype))
        cc.shared_start, cc.start = self.shared_start, self.start
        cc.shared_latents, cc.shared_penalty, cc.dedicated = self.shared_latents, self.shared_penalty, self.dedicated
        return cc


FEW_STEPS = "few-steps"
DEAD_AFTER = 50_000  # rows without firing after which a latent of a short run counts as dead

# Published settings; sizes, widths and step counts are left to the caller.
PRESETS: dict[str, dict[str, Any]] = {
    # the paper's formulas (arXiv 2509.17196): one gate for all snapshots, tanh-quad penalty
    "evolution-paper": {
        "activation": {"kind": "jumprelu", "warmup": 5000, **PUBLISHED_JUMPS},
        "gate": "shared",
        "start": {"scaling": "mean-norm", "norm": 0.5},
        "lr": 5e-5,
        "k_aux": 0,
    },
    # its published code: a gate per snapshot with thresholds shared between them
    "evolution-code": {
        "activation": {"kind": "jumprelu", "warmup": 5000, **PUBLISHED_JUMPS},
        "gate": "per-source",
        "start": {"scaling": "mean-norm", "norm": 0.5},
        "lr": 5e-5,
        "k_aux": 0,
    },
    # Anthropic 2024, Sparse Crosscoders; starting norm as in the public model-diffing replications
    "anthropic-l1": {
        "activation": {"kind": "l1", "warmup": 1000},
        "start": {"scaling": "mean-norm", "norm": 0.1},
        "lr": 5e-5,
        "k_aux": 0,
    },
    # Minder et al. 2025 (arXiv 2504.02922)
    "batchtopk": {"activation": {"kind": "batchtopk"}, "lr": 1e-4},
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
    return CrosscoderConfig(**presets.merged(PRESETS[name], by_todays_names(values, PRESETS[name])))
