"""From what a command line says to a spec: a file, a bundled name, or the name of a figure."""

from __future__ import annotations

from pathlib import Path

from sae.errors import ConfigError, MissingError
from sae.files import MAX_JSON_BYTES, read_json
from sae.strict import nearest, parse_config, read_toml
from workbench.config import data_dir
from workbench.exporting.figures import figure_kinds
from workbench.exporting.spec import FigureSpec


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
