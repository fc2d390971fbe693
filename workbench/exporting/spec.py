"""What to export: one figure of one result, in one style. A spec is a TOML or JSON file, or the name of a bundled one.

figure = "mppc_distribution"
source = "matches/mini-pythia__mini-mamba"      # may be left out where the workspace holds only one
[options]
baselines = ["shuffle", "neurons"]
[style]
width = "double"
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from sae.strict import StrictConfig

WIDTHS = {"single": 3.25, "double": 6.75}  # inches, one and two columns of a conference paper
Scalar = str | int | float | bool | None


class Style(StrictConfig):
    """How the figure is set. Lengths in inches, type in points."""

    width: Literal["single", "double"] | float = "single"
    height: float | None = Field(default=None, gt=0.5, le=20)
    font_size: float = Field(default=8, ge=5, le=24)
    palette: Literal["okabe-ito", "greys"] = "okabe-ito"
    dpi: int = Field(default=300, ge=72, le=1200)

    @field_validator("width")
    @classmethod
    def _sensible(cls, value: Any) -> Any:
        if isinstance(value, float) and not 1 <= value <= 20:
            raise ValueError("width is 'single', 'double', or 1 to 20 inches")
        return value

    @property
    def inches(self) -> float:
        """Width in inches."""
        return WIDTHS[self.width] if isinstance(self.width, str) else self.width


class FigureSpec(StrictConfig):
    """One export. ``options`` are the figure's own; ``workbench export --list`` names figures and options."""

    figure: str
    source: str = Field(default="", max_length=200)  # "<kind>/<id>" of the workspace
    options: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    style: Style = Field(default_factory=Style)
    caption: str = Field(default="", max_length=4000)  # replaces the caption's first sentence

    def plain(self) -> dict[str, Any]:
        """JSON-ready values, defaults included: what digests and reproduce.sh rest on."""
        return self.model_dump(mode="json")
