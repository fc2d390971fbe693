"""Where bundled data and the user's texts lie, and how a recipe is found and read.

Recipes are TOML files. A recipe argument is a path, or the bare name of a bundled recipe (``mini-train``).

A workspace names a text by the last part of its path and knows it by a digest. Where files with that text lie is the
user's setting, ``texts.json`` below ``XDG_CONFIG_HOME`` (else ``~/.config``), outside every workspace: a recipe that is
read back from a result finds them there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from sae.errors import ConfigError, CorruptError, MissingError
from sae.files import read_json, write_json
from sae.strict import nearest, parse_config, read_config, read_toml

if TYPE_CHECKING:
    from workbench.workspace import Workspace

C = TypeVar("C", bound=BaseModel)
_TEXTS_SCHEMA = 1


@cache
def data_dir() -> Path:
    """The bundled ``data/`` folder: ``workbench/_data`` in an installed wheel, ``data/`` in a checkout."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "_data", here.parent / "data"):
        if (candidate / "recipes").is_dir():
            return candidate
    raise MissingError(
        f"the bundled data is missing beside {here}. Reinstall the package: pip install --force-reinstall"
        " interpretability-workbench"
    )


def cache_dir() -> Path:
    """Where what can be made again is kept between processes: below ``XDG_CACHE_HOME``, else ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "interpretability-workbench"


def config_dir() -> Path:
    """Where this user's own settings are: below ``XDG_CONFIG_HOME``, else ``~/.config``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "interpretability-workbench"


def find_recipe(recipe: str | Path) -> Path:
    """The file a recipe argument means: an existing path, or the name of a bundled recipe with or without ``.toml``.

    Raises:
        MissingError: neither; the message names the nearest bundled recipe.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    bundled = {p.stem: p for p in sorted((data_dir() / "recipes").glob("*.toml"))}
    if path.name in (str(recipe), f"{recipe}") and path.stem in bundled and path.suffix in ("", ".toml"):
        return bundled[path.stem]
    if str(recipe) in bundled:
        return bundled[str(recipe)]
    raise MissingError(
        f"recipe {str(recipe)!r} is neither a file nor a bundled recipe ({nearest(path.stem, list(bundled))})"
    )


def kind_of(values: dict[str, Any], where: str) -> str:
    """Which command a recipe is for, by its own keys.

    Raises:
        ConfigError: none of the known kinds.
    """
    if "architecture" in values:
        return "pretrain"
    if {"crosscoder", "revisions", "snapshots", "expansion", "heldout_seqs"} & set(values):
        return "evolve"
    if "store" in values or "expansions" in values or "sae" in values:
        return "train"
    if "n_seq" in values or "hooks" in values:
        return "harvest"
    if "model" in values and "site" in values:
        return "evolve"
    raise ConfigError(
        f"{where} is neither a pretrain (architecture), a harvest (sources, hooks), a train (store, sites) nor an"
        " evolve recipe (model, site)."
    )


@cache
def bundled_recipe(kind: str, model: str) -> str | None:
    """The bundled recipe of a command (``evolve``) over a model: one named after the command, ``mini-`` before the
    demo's; None where there is none.
    """

    def rank(path: Path) -> tuple[bool, bool, str]:
        return kind not in path.stem, not path.stem.startswith("mini-"), path.stem

    for path in sorted((data_dir() / "recipes").glob("*.toml"), key=rank):
        values = read_toml(path)
        if values.get("model") == model and kind_of(values, path.name) == kind:
            return path.stem
    return None


def as_recipe(model: type[C], recipe: C | str | Path, workspace: Workspace | None = None) -> C:
    """A recipe that may be the object itself, or (``kind/id``) that of a result of the workspace; else see
    :func:`read_recipe`.
    """
    if isinstance(recipe, model):
        return recipe
    made = None if workspace is None else recorded_recipe(str(recipe), workspace)
    return read_recipe(model, str(recipe)) if made is None else parse_config(model, made, where=str(recipe))


def recorded_recipe(what: str, workspace: Workspace) -> dict[str, Any] | None:
    """The recipe that made a result of the workspace (``dictionaries/mini-pythia.L1R-8x``), its texts by the paths they
    have on this machine; None where ``what`` names none.
    """
    from workbench.workspace import KINDS

    kind, _, id = what.partition("/")
    if kind not in KINDS or not id or "/" in id or Path(what).is_file() or not workspace.complete(kind, id):
        return None
    item = workspace.get(kind, id)
    recipe = item.manifest.recipe
    texts = {i.digest for i in item.manifest.inputs if i.kind == "texts"}
    if kind == "stores":
        texts |= text_digests(read_json(item.path / "store.json").get("plan", {}).get("about"))
    return located(recipe, texts) if recipe else None


def read_recipe(model: type[C], recipe: str | Path) -> C:
    """Read a recipe into ``model``; unknown keys are errors that name the nearest valid key and the file.

    Raises:
        MissingError: no such recipe. ConfigError: bad keys or values, or a recipe for another command, which is named.
    """
    path = find_recipe(recipe)
    try:
        return read_config(model, path)
    except ConfigError as e:
        try:
            kind = kind_of(read_toml(path), str(path))
        except ConfigError:
            raise e from None
        if model.__name__.lower().startswith(kind):
            raise
        raise ConfigError(f"{path.name} is a recipe for another command: `workbench {kind} {recipe}`.") from e


def corpus_name(path: str) -> str:
    """A text as results name it: the last part of its path, so that a workspace holds no place and is the same wherever
    the text lies.
    """
    return Path(os.path.abspath(Path(path).expanduser())).name


def texts_file() -> Path:
    """The user's setting; it need not exist."""
    return config_dir() / "texts.json"


def remember_text(digest: str, paths: Sequence[str]) -> None:
    """Note which files and folders on this machine hold the text of this digest, in the order of the recipe."""
    at = [str(Path(p).expanduser().absolute()) for p in paths]
    known = _text_places()
    if at and digest and known.get(digest) != at:
        texts_file().parent.mkdir(parents=True, exist_ok=True)
        write_json(texts_file(), {"schema": _TEXTS_SCHEMA, "places": {**known, digest: at}})


def text_digests(about: Any) -> set[str]:
    """Digests of the texts that a token plan was cut from, by what it says of itself; none where it does not say."""
    if not isinstance(about, dict):
        return set()
    own = {str(about[key]) for key in ("corpus_digest", "files_digest") if about.get(key)}
    return own.union(*(text_digests(part) for part in about.get("parts", ())))


def located(recipe: Any, digests: Collection[str]) -> Any:
    """A recipe that a result recorded, with its texts by the paths they have on this machine. What is known of none of
    ``digests`` (of the texts that the result was made from) stays as it is.
    """
    places = [p for digest, p in _text_places().items() if digest in digests]
    return _located(recipe, {tuple(map(corpus_name, p)): p for p in places}) if places else recipe


def _located(value: Any, places: dict[tuple[str, ...], list[str]]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_located(v, places) for v in value]
    if not isinstance(value, dict):
        return value
    found = {k: _located(v, places) for k, v in value.items()}
    dataset = value.get("dataset")
    if dataset and (dataset,) in places:
        found["dataset"] = places[dataset,][0]
    elif not dataset and value.get("paths") and (there := places.get(tuple(map(corpus_name, value["paths"])))):
        found["paths"] = there
    return found


def _text_places() -> dict[str, list[str]]:
    try:
        values = read_json(texts_file())
    except MissingError:
        return {}
    places = values.get("places") if isinstance(values, dict) else None
    if not isinstance(places, dict):
        raise CorruptError(f"{texts_file()} is not the list of texts it should be. Remove it.")
    return {str(k): [str(p) for p in v] for k, v in places.items() if isinstance(v, list)}
