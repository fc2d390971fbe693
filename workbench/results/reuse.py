"""When a finished result is reused: one rule for every verb.

A result serves a request if its recipe, its inputs (by digest) and the schema of its numbers are those asked for.
Otherwise the request is refused with a :class:`~sae.errors.MismatchError` that names every key with both values, or,
where the run says ``replace``, the result is made anew; its old folder stays until the new one is whole. What changes
nothing in a result (workers, progress, processes) is in no recipe, so it never counts; nor does the version of the
program that made it. A manifest that was written before a key or a kind of input was recorded is compared on what it
holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.changes import Change, changes, said
from sae.errors import MismatchError
from sae.files import canonical_json
from workbench.config import corpus_name
from workbench.provenance import Input, Manifest, numbers_schema
from workbench.run import QUIET, Run
from workbench.version import __version__
from workbench.workspace import KINDS, Item, Workspace

REMEDY = "--replace makes it anew (the old one stays until the new one is whole)"


def reusable(
    workspace: Workspace,
    kind: str,
    id: str,
    *,
    recipe: Mapping[str, Any],
    inputs: Sequence[Input] = (),
    run: Run = QUIET,
    recorded: Callable[[Manifest], Mapping[str, Any]] | None = None,
    before: Mapping[str, Any] | None = None,
    words: Mapping[str, str] | None = None,
    otherwise: str = "",
) -> Item | None:
    """The complete result that serves a request; None where it is to be made: it is absent, or differs and the run says
    ``replace``.

    Args:
        recipe: what decides the result, as JSON values. inputs: what it would be made from.
        recorded: what the existing manifest says in the terms of ``recipe``; default: its recipe.
        before: values of keys that older manifests do not have.
        words: what a person calls a key, where that is another name.
        otherwise: what else one can do, such as ``or give the recipe another id``.

    Raises:
        MismatchError: it differs; every key is named with both values.
    """
    if not workspace.complete(kind, id):
        return None
    item = workspace.get(kind, id)
    have = item.manifest
    found = differences(have, recipe, inputs, recorded=recorded, before=before, words=words)
    if not found:
        run.say(f"{id}: complete, {made_by(have)}reused")
        return item
    if run.replace:
        run.say(f"{id}: made anew ({said(found)})")
        return None
    raise mismatch(f"{kind}/{id}", found, otherwise)


def differences(
    have: Manifest,
    recipe: Mapping[str, Any],
    inputs: Sequence[Input] = (),
    *,
    recorded: Callable[[Manifest], Mapping[str, Any]] | None = None,
    before: Mapping[str, Any] | None = None,
    words: Mapping[str, str] | None = None,
) -> list[Change]:
    """All in which a result is not what is asked for; see :func:`reusable`."""
    there = by_name({**(before or {}), **(recorded(have) if recorded else have.recipe)})
    found = [
        c._replace(key=(words or {}).get(c.key, c.key))
        for c in changes(plain(there), plain({**(before or {}), **recipe}))
    ]
    found += _inputs(have.inputs, inputs)
    schema = have.code.get("numbers", 1)
    if schema != numbers_schema(have.kind):
        made = f"schema {schema} of version {have.code.get('version', 'unknown')}"
        found.append(Change("numbers", made, f"schema {numbers_schema(have.kind)}"))
    return found


def inputs_now(workspace: Workspace, kind: str, id: str) -> list[Input]:
    """The inputs of a complete result that lie in the workspace, as they are there now; one that is gone as it was.
    Models, texts and files of others are not among them. Empty where there is no such result.
    """
    if not workspace.complete(kind, id):
        return []
    there = [i for i in workspace.get(kind, id).manifest.inputs if i.kind in KINDS and i.kind != "models"]
    return [workspace.get(i.kind, i.id).as_input() if workspace.complete(i.kind, i.id) else i for i in there]


def mismatch(what: str, found: Sequence[Change], otherwise: str = "") -> MismatchError:
    """The refusal: what exists, what differs, what to do."""
    more = f", {otherwise}" if otherwise else ""
    return MismatchError(f"{what} exists and is not what is asked for: {said(found)}. {REMEDY}{more}.", found)


def made_by(have: Manifest) -> str:
    """``made by version X, `` where that is not this one."""
    version = have.code.get("version", "")
    return f"made by version {version}, " if version and version != __version__ else ""


def plain(value: Any) -> Any:
    """A value as it comes back from a file: tuples are lists."""
    return json.loads(canonical_json(value))


def by_name(value: Any) -> Any:
    """A recipe whose models and texts an older version may have called by paths, with the names they go by now."""
    if isinstance(value, dict):
        hub = value.get("kind") == "hub"  # its paths are patterns of the dataset's files
        return {k: _name(k, v) if k == "model" or (k == "paths" and not hub) else by_name(v) for k, v in value.items()}
    return [by_name(v) for v in value] if isinstance(value, list) else value


def _name(key: str, value: Any) -> Any:
    if key == "paths":
        return [corpus_name(v) for v in value] if isinstance(value, list) else value
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else by_name(value)


def _inputs(there: Sequence[Input], asked: Sequence[Input]) -> list[Change]:
    """Inputs that are not the same ones. Kinds that the manifest does not record at all are passed over."""
    found = []
    for kind in sorted({i.kind for i in there}):
        old = {i.id: i.digest for i in there if i.kind == kind}
        new = {i.id: i.digest for i in asked if i.kind == kind}
        if sorted(old.values()) == sorted(new.values()):
            continue  # the same things, maybe by another name
        if old.keys() == new.keys():
            found += [
                Change(f"{kind}/{id}", f"version {old[id][:8]}", f"version {new[id][:8]}")
                for id in sorted(old)
                if old[id] != new[id]
            ]
        elif new:  # what is not at hand cannot be compared
            found.append(Change(kind, ", ".join(sorted(old)), ", ".join(sorted(new)) or "none"))
    return found
