"""What a world with known features is made of, and the published ones by name."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from sae.errors import ConfigError
from sae.strict import StrictConfig


class WorldConfig(StrictConfig):
    """A world of planted features (SynthSAEBench, arXiv 2602.14687, section 3).

    The defaults are its 16k world at a size for two cores: the same laws of frequencies, sizes, correlation and
    hierarchy, an eighth of the features, a sixth of the width.

    Example:
        ``World(WorldConfig(n_features=64, width=64, roots=0)).sample(1000, generator)``
    """

    n_features: int = Field(2048, ge=1, description="planted features G, the most frequent first")
    width: int = Field(128, ge=1, description="width D of a row; fewer than features is superposition")
    seed: int = Field(0, description="of everything that is planted; rows have their own")

    exponent: float = Field(0.5, gt=0, description="of the Zipf law of frequencies")
    p_max: float = Field(0.4, gt=0, le=1, description="how often the most frequent feature is on")
    p_min: float = Field(5e-4, gt=0, le=1, description="how often the rarest is")

    roots: int = Field(16, ge=0, description="trees of the hierarchy, 0 = none; their roots are the first features")
    branching: int = Field(4, ge=2, description="children of a feature that is no leaf")
    depth: int = Field(3, ge=1, description="levels below the roots")
    exclusive: float = Field(1.0, ge=0, le=1, description="share of the parents at most one of whose children is on")
    compensate: bool = Field(True, description="raise frequencies by what hierarchy and exclusion take away")
    scale_children: bool = Field(True, description="a child's size follows its parent's, relative to its mean")

    rank: int = Field(25, ge=0, description="of the Gaussian copula that makes firing correlated; 0 = independent")
    correlation: float = Field(0.1, ge=0, description="standard deviation of its factors")

    orthogonal_steps: int = Field(100, ge=0, description="steps of Adam that drive the directions apart")
    orthogonal_lr: float = Field(3e-4, gt=0)
    size_start: float = Field(5.0, gt=0, description="mean size of the first feature where it is on")
    size_end: float = Field(4.0, gt=0, description="and of the last; linear between")
    spread_mean: float = Field(0.5, ge=0, description="sizes vary by |N(spread_mean, spread_std)|, one per feature")
    spread_std: float = Field(0.5, ge=0)
    bias: float = Field(0.5, ge=0, description="length of what every row has in common")

    @model_validator(mode="after")
    def _fits(self) -> WorldConfig:
        if self.p_min >= self.p_max:
            raise ConfigError(
                f"p_min = {self.p_min} must be below p_max = {self.p_max}: they bound how often a feature is on. Lower"
                " p_min."
            )
        if self.in_trees > self.n_features:
            raise ConfigError(
                f"{self.roots} trees of depth {self.depth} with {self.branching} children each have {self.in_trees}"
                f" features, more than n_features = {self.n_features}. Use fewer roots (0 = no trees)."
            )
        return self

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """(first, one past the last) feature of every level of the hierarchy, roots first; empty without one."""
        ends, out = 0, []
        for level in range(self.depth + 1 if self.roots else 0):
            out.append((ends, ends := ends + self.roots * self.branching**level))
        return tuple(out)

    @property
    def in_trees(self) -> int:
        """Features that belong to the hierarchy."""
        return self.levels[-1][1] if self.levels else 0


# Worlds by name. ``synth-16k`` is the published one (its model and its definitions, with seed 42).
WORLDS: dict[str, dict[str, Any]] = {
    "synth-16k": {"n_features": 16_384, "width": 768, "roots": 128, "seed": 42},
    "small": {},
    "small-wide": {"width": 256},
    "small-narrow": {"width": 64},
    "orthogonal": {
        "n_features": 64,
        "width": 64,
        "roots": 0,
        "rank": 0,
        "p_max": 0.1,
        "p_min": 0.02,
        "orthogonal_steps": 400,
        "orthogonal_lr": 0.01,
    },
}
