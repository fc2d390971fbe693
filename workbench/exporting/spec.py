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

    width: Literal["single", "double"] | float = Field(
        "single", description="single or double column of a paper, or inches"
    )
    height: float | None = Field(default=None, gt=0.5, le=20, description="inches; none = what the figure needs")
    font_size: float = Field(default=8, ge=5, le=24, description="points")
    palette: Literal["okabe-ito", "greys"] = Field(
        "okabe-ito", description="colours that differ for everybody, or greys"
    )
    dpi: int = Field(default=300, ge=72, le=1200, description="dots per inch of the PNG")

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

    figure: str = Field(description="which figure or document; `workbench export --list` names them")
    source: str = Field(
        default="",
        max_length=200,
        description="the result it shows, as kind/id; may be left out where the workspace holds only one",
    )  # "<kind>/<id>" of the workspace
    options: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict, description="options of the figure")
    style: Style = Field(default_factory=Style, description="how it is set, as a table of its own")
    caption: str = Field(
        default="", max_length=4000, description="replaces the first sentence of the caption"
    )  # replaces the caption's first sentence

    def plain(self) -> dict[str, Any]:
        """JSON-ready values, defaults included: what digests and reproduce.sh rest on."""
        return self.model_dump(mode="json")
