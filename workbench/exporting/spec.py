"""What to export: one figure of one result, in one style. A spec is a TOML or JSON file, or the name of a bundled one.

figure = "mppc_distribution"
source = "matches/mini-pythia__mini-mamba"      # may be left out where the workspace holds only one
[options]
baselines = ["shuffle", "neurons"]
[style]
width = "double"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from sae.errors import ConfigError, MissingError
from sae.files import MAX_JSON_BYTES, read_json
from sae.strict import StrictConfig, nearest, parse_config, read_toml
from workbench.config import data_dir

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


def bundled_specs() -> dict[str, Path]:
    """Name -> file of the specs that come with the program."""
    return {p.stem: p for p in sorted((data_dir() / "specs").glob("*.toml"))}


def read_spec(spec: str | Path) -> FigureSpec:
    """The spec a command-line argument means: a ``.toml`` or ``.json`` file, the name of a bundled spec, or of a
    figure.

    A figure's name (``mppc_distribution``) stands for that figure with its default options.

    Raises:
        MissingError: none of these; the message names the nearest one. ConfigError: unknown or bad keys.
    """
    path = Path(spec)
    if not path.is_file():
        from workbench.exporting.figures import figure_kinds

        bundled = bundled_specs()
        if str(spec) in figure_kinds():
            return FigureSpec(figure=str(spec))
        if str(spec).removesuffix(".toml") not in bundled:
            hint = nearest(path.stem, [*bundled, *figure_kinds()])
            raise MissingError(f"export spec {str(spec)!r} is neither a file nor a bundled spec or figure ({hint})")
        path = bundled[str(spec).removesuffix(".toml")]
    if path.suffix == ".json":
        values = read_json(path)
    elif path.suffix == ".toml":
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path} is too large for an export spec.")
        values = read_toml(path)
    else:
        raise ConfigError(f"{path}: an export spec is a .toml or .json file.")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: an export spec is a table of keys, not a {type(values).__name__}.")
    return parse_config(FigureSpec, values, where=str(path))
