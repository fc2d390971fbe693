"""Which results rest on something that was made again since, and the commands that bring a workspace up to date.

A result names its inputs by digest. One whose input has another digest now is *stale*: its numbers are right about what
was there before, and wrong about what is there now. What rests on a stale result is stale, too.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from sae.errors import UserError
from sae.files import canonical_json, read_json
from workbench.provenance import Input, Manifest
from workbench.workspace import KINDS, Item, Workspace

Key = tuple[str, str]
_BY_RECIPE = ("harvest", "train", "evolve")  # verbs that also take a result of the workspace, and mean its recipe
_SNAPSHOT = re.compile(r"(?:(?P<revision>[^/]+)/)?[^/]+\.(?:safetensors|bin)")


class Known(NamedTuple):
    """A complete result: its manifest, and the eight digits of its digest."""

    manifest: Manifest
    version: str


@dataclass(frozen=True)
class Stale:
    """A stale result. ``why``: one line for each input that is another one now. ``by``: the id of a result of the same
    recipe that is up to date (figures and graphs of other inputs have other ids), or empty.
    """

    kind: str
    id: str
    why: tuple[str, ...]
    by: str = ""

    def __str__(self) -> str:
        more = f"; {self.kind}/{self.by} is up to date" if self.by else ""
        return f"{self.kind}/{self.id}: {'; '.join(self.why)}{more}"


def known_results(workspace: Workspace) -> dict[Key, Known]:
    """All complete results by (kind, id); those that cannot be read are left out."""
    items = [item for kind in KINDS if kind != "lists" for item in workspace.items(kind)]
    return {(item.kind, item.id): have for item in items if (have := _read(item)) is not None}


def why_stale(workspace: Workspace, items: Collection[Item]) -> list[str]:
    """Why some results are stale, one line each; empty where they are up to date. Only what they rest on is read."""
    known: dict[Key, Known] = {}
    todo, wanted = list(items), {(item.kind, item.id) for item in items}
    while todo:
        item = todo.pop()
        if (item.kind, item.id) in known or (have := _read(item)) is None:
            continue
        known[item.kind, item.id] = have
        read = {(i.kind, i.id.partition("@")[0] if i.kind == "models" else i.id) for i in _inputs(have.manifest)}
        todo += [workspace.get(*key) for key in read if key[0] in KINDS and workspace.complete(*key)]
    found = stale_results(known)
    return [str(found[key]) for key in sorted(wanted) if key in found]


def _read(item: Item) -> Known | None:
    """A result, or None where its manifest cannot be read: what reads it says why."""
    try:
        have = item.manifest
        if item.kind == "stores":  # its seal names the sources, store.json says what they are
            sources = read_json(item.path / "store.json").get("sources", [])
            have = have.model_copy(update={"metadata": {**have.metadata, "sources": sources}})
        return Known(have, item.version)
    except (UserError, OSError):
        return None


def stale_results(known: Mapping[Key, Known]) -> dict[Key, Stale]:
    """The stale ones of some results, each after those it rests on."""
    found: dict[Key, Stale] = {}
    seen: set[Key] = set()

    def visit(key: Key) -> None:
        if key in seen or key not in known:
            return
        seen.add(key)
        why = []
        for i in _inputs(known[key].manifest):
            visit((i.kind, i.id))
            now = _now(i, known)
            if now is not None and now != i.digest[: len(now)]:
                why.append(f"{i.kind}/{i.id} was made again ({i.digest[:8]} then, {now[:8]} now)")
            elif (i.kind, i.id) in found:
                why.append(f"rests on {i.kind}/{i.id}, which is stale")
        if why:
            found[key] = Stale(*key, tuple(dict.fromkeys(why)))

    for kind in KINDS:
        for key in sorted(k for k in known if k[0] == kind):
            visit(key)
    return {key: Stale(s.kind, s.id, s.why, _successor(key, known, found)) for key, s in found.items()}


def read_model(known: Mapping[Key, Known], id: str) -> bool:
    """Whether any of the results was made with the model of that id."""
    read = (i for have in known.values() for i in _inputs(have.manifest))
    return any(i.kind == "models" and i.id.partition("@")[0] == id for i in read)


def commands(known: Mapping[Key, Known], stale: Mapping[Key, Stale]) -> list[tuple[str, tuple[str, ...]]]:
    """(command, what it makes anew) in the order in which they bring the workspace up to date. Nothing for those that
    have a successor; the command is empty where the result does not say what made it.
    """
    made: dict[str, list[str]] = {}
    once: dict[bytes, str] = {}  # one command makes all dictionaries of a recipe
    for (kind, id), s in stale.items():
        if s.by:
            continue
        have = known[kind, id].manifest
        words = _words(have.command)
        if len(words) > 2 and words[1] in _BY_RECIPE and have.recipe:
            command = once.setdefault(
                canonical_json([words[1], have.recipe]), shlex.join(["workbench", words[1], f"{kind}/{id}"])
            )
        else:
            command = have.command
        made.setdefault(command, []).append(f"{kind}/{id}")
    return [(command, tuple(names)) for command, names in made.items()]


def weights_of_manifest(have: Manifest, revision: str) -> str | None:
    """The digest of a model folder's configuration and weights at a revision (the last one where empty), as
    :func:`workbench.models.weights.weights_of_files` takes it, from the digests its manifest lists; None where it lists
    no weights.
    """
    parts = {name: PurePosixPath(name).parent.name for name in have.files if _SNAPSHOT.fullmatch(name)}
    revisions = sorted(set(parts.values()), key=lambda r: int(r[4:]) if re.fullmatch(r"step\d+", r) else 1 << 60)
    wanted = revision or (revisions[-1] if revisions else "")
    weights = [name for name, at in sorted(parts.items()) if at == wanted]
    if not weights or "config.json" not in have.files:
        return None
    digest = hashlib.sha256()
    for name in ("config.json", *weights):
        digest.update(f"{PurePosixPath(name).name} {have.files[name].sha256}\n".encode())
    return digest.hexdigest()


def _inputs(have: Manifest) -> list[Input]:
    """What a result was made from. A store names its models as sources; circuits know their model by the digest of its
    loaded parameters and, in their metadata, by that of its files.
    """
    about, inputs = have.metadata, list(have.inputs)
    if have.kind == "circuits":
        inputs = [i for i in inputs if i.kind != "models"]
        if about.get("weights"):
            inputs.append(_model(str(about.get("model")), about.get("revision"), str(about["weights"])))
    if have.kind == "stores":
        inputs += [
            _model(str(s["model"]), s.get("revision"), str(s["weights"]))
            for s in about.get("sources", ())
            if isinstance(s, dict) and s.get("model") and s.get("weights")
        ]
    return inputs


def _model(name: str, revision: str | None, digest: str) -> Input:
    id = name.rstrip("/").split("/")[-1]
    return Input(kind="models", id=f"{id}@{revision}" if revision else id, digest=digest)


def _now(i: Input, known: Mapping[Key, Known]) -> str | None:
    """What an input's digest begins with now; None where the workspace does not hold it."""
    if i.kind != "models":
        have = known.get((i.kind, i.id))
        return have.version if have else None
    model, _, revision = i.id.partition("@")
    have = known.get(("models", model))
    return weights_of_manifest(have.manifest, revision) if have else None


def _successor(key: Key, known: Mapping[Key, Known], stale: Mapping[Key, Stale]) -> str:
    """A result of the same kind, recipe and kinds of inputs that is not stale, where ids are made from inputs."""
    if key[0] not in ("graphs", "exports"):
        return ""
    have = known[key].manifest
    same = [
        id
        for (kind, id), other in known.items()
        if kind == key[0] and (kind, id) not in stale and other.manifest.recipe == have.recipe and id != key[1]
    ]
    return same[0] if same else ""


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return []
