"""Frozen configuration models whose typos are errors that name the nearest valid key."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sae.errors import ConfigError, MissingError


class StrictConfig(BaseModel):
    """Base of every configuration here: frozen, no unknown keys, defaults that run."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False, validate_default=True)


C = TypeVar("C", bound=BaseModel)


MANY = 20  # more names than these nobody reads in a line


def nearest(word: str, choices: list[str]) -> str:
    """A hint (``did you mean 'x'?``), or the list of choices where nothing is near; of many the six nearest."""
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    names = sorted(set(choices))
    if len(names) <= MANY:
        return f"valid: {', '.join(names)}"
    # names that hold the word come first: "mppc" is nearer to "layers-of-mppc" than its letters say
    holding = [name for name in names if word and word.lower() in name.lower()]
    rest = difflib.get_close_matches(word, [n for n in names if n not in holding], n=6, cutoff=0.0)
    return f"nearest of {len(names)}: {', '.join((holding + rest)[:6])}"


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The keys that are valid beside the offending one at ``loc`` (nested models are followed)."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        stack: list[Any] = [field.annotation]
        while stack:
            t = stack.pop()
            if isinstance(t, type) and issubclass(t, BaseModel):
                model = t
                break
            stack.extend(getattr(t, "__args__", ()))
    return list(model.model_fields)


def parse_config(model: type[C], values: dict[str, Any], *, where: str) -> C:
    """Build a config from plain values; every problem is named at once, with ``where`` (a file) and a remedy.

    Raises:
        ConfigError: unknown key (with the nearest valid one), wrong type, or a value out of range.
    """
    try:
        return model.model_validate(values)
    except ValidationError as e:
        lines = []
        for err in e.errors():
            key = ".".join(str(p) for p in err["loc"]) or "(whole document)"
            if err["type"] == "extra_forbidden":
                lines.append(f"unknown key {key!r} ({nearest(str(err['loc'][-1]), _fields_at(model, err['loc']))})")
            elif err["type"] == "missing":
                lines.append(f"key {key!r} is missing")
            else:
                shown = repr(err["input"])
                lines.append(f"{key} = {shown[:80]}: {err['msg']}")
        raise ConfigError(f"{where}: " + "; ".join(lines)) from e


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        MissingError: no such file. ConfigError: not TOML (with line and column).
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as e:
        raise MissingError(f"recipe {str(path)!r} does not exist.") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} is not valid TOML: {e}. Mend that line.") from e


def read_config(model: type[C], path: str | Path) -> C:
    """Read a config from a TOML file (see :func:`parse_config`)."""
    return parse_config(model, read_toml(path), where=str(path))
