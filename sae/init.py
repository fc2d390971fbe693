"""How a dictionary starts from its first batch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sae.strict import StrictConfig


class InitConfig(StrictConfig):
    """How a dictionary starts from its first batch."""

    scaling: Literal["centred", "mean-norm"] = Field(
        "centred", description="rows to length sqrt(d): centred rms, or mean norm"
    )
    norm: float | Literal["search"] = Field(
        1.0,
        description=(
            "of decoder rows where they are free; search: the common norm of encoders and decoders with least error"
        ),
    )
    encoder: Literal["fitted", "tied"] = Field(
        "fitted", description="tied: as long as the decoders; fitted: the length with least error"
    )
    bias: Literal["mean", "zero"] = Field("mean", description="decoder bias at the start")
    pre_bias: bool = Field(True, description="subtract the decoder bias from the input")

    @field_validator("norm")
    @classmethod
    def _positive(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and value <= 0:
            raise ValueError("must be a positive number, or 'search' (try several and keep the best)")
        return value
