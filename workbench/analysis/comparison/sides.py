"""Who is compared with whom: the dictionaries A and B mean, and those of the workspace that serve as skylines.

A and B are dictionary ids, or names of models (``mini-mamba``, ``mini-pythia@step512``) that mean all residual
dictionaries of that model, one per layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sae.errors import MissingError, UsageError
from sae.strict import nearest
from workbench.dictionaries.reference import DictionaryRef, find_dictionary
from workbench.workspace import Workspace

_LAYER = re.compile(r"blocks\.(\d+)\.|L(\d+)[A-Z]")
SEED_NAME = re.compile(r"-s(?:eed)?-?\d+$")


@dataclass(frozen=True)
class Group:
    """Dictionaries of one model, at most one per layer, in order of depth."""

    name: str  # what it is called in ids and figures
    references: tuple[DictionaryRef, ...]

    @property
    def layers(self) -> list[int]:
        """Layer of each dictionary."""
        return [layer_of(s) for s in self.references]

    @property
    def model(self) -> tuple[str, str | None]:
        """(model name, revision) the dictionaries belong to."""
        return self.references[0].model_name, self.references[0].revision

    @property
    def seed(self) -> int:
        """Training seed of the dictionaries."""
        return int(self.references[0].metadata.get("seed") or 0)


def layer_of(reference: DictionaryRef) -> int:
    """Layer of a dictionary's site; 0 where its hook names none."""
    found = _LAYER.search(str(reference.metadata.get("hook_name") or reference.metadata.get("site") or ""))
    return int(found[1] or found[2]) if found else 0


def site_kind(reference: DictionaryRef) -> str:
    """``R``, ``A``, ``M``, ``TC`` or ``S``; empty where the dictionary does not say."""
    found = re.fullmatch(r"L\d+([A-Z]+)", str(reference.metadata.get("site") or ""))
    if found:
        return found[1]
    return "R" if "resid" in str(reference.metadata.get("hook_name") or "") else ""


def find_group(workspace: Workspace, name: str, *, pattern: str = "") -> Group:
    """The dictionaries that A or B on a command line means.

    Args:
        pattern: part of the ids to choose by where a model has several dictionaries per layer (``-8x``).

    Raises:
        MissingError: neither a dictionary nor a model with residual dictionaries. UsageError: several per layer.
    """
    catalogue = all_references(workspace)
    if name in {s.id for s in catalogue}:
        found = find_dictionary(workspace, name)
        return Group(found.id, (found,))
    own = [s for s in catalogue if name in (_called(s), str(s.metadata.get("model_name"))) and _plain_residual(s)]
    own = [s for s in own if _called(s) == name] or [s for s in own if s.revision is None]
    if not own:
        try:
            found = find_dictionary(workspace, name)
        except MissingError:
            names = sorted({_called(s) for s in catalogue} | {s.id for s in catalogue})
            hint = nearest(name, names) if names else "it has no dictionary; `workbench train` makes some"
            raise MissingError(
                f"{name!r} is neither a dictionary nor a model with residual dictionaries in {workspace.root} ({hint})"
            ) from None
        return Group(found.id, (found,))
    lowest = min(_seed(s) for s in own)
    own = [s for s in own if _seed(s) == lowest and pattern in s.id]
    return Group(name, _one_per_layer(own, name))


def all_references(workspace: Workspace) -> list[DictionaryRef]:
    """Every complete dictionary of the workspace."""
    return [find_dictionary(workspace, item.id) for item in workspace.items("dictionaries")]


def _called(reference: DictionaryRef) -> str:
    """``<model>[@revision]`` as ids write it."""
    name = str(reference.metadata.get("model_name") or "").rstrip("/").split("/")[-1]
    return f"{name}@{reference.revision}" if reference.revision else name


def _plain_residual(reference: DictionaryRef) -> bool:
    return str(reference.metadata.get("kind", "sae")) == "sae" and site_kind(reference) == "R"


def _seed(reference: DictionaryRef) -> int:
    return int(reference.metadata.get("seed") or 0)


def _one_per_layer(references: list[DictionaryRef], name: str) -> tuple[DictionaryRef, ...]:
    by_layer: dict[int, DictionaryRef] = {}
    for s in sorted(references, key=lambda s: (layer_of(s), s.id)):
        if layer_of(s) in by_layer:
            raise UsageError(
                f"{name} has several residual dictionaries at layer {layer_of(s)}: {by_layer[layer_of(s)].id}, {s.id}."
                " Choose with --pattern, for example --pattern -8x."
            )
        by_layer[layer_of(s)] = s
    if not by_layer:
        raise UsageError(f"no dictionary of {name} matches --pattern.")
    return tuple(by_layer.values())


def _matching(group: Group, found: list[DictionaryRef], name: str) -> Group | None:
    """Those of ``found`` that stand for the group's layers with the same number of latents; None unless all layers have
    one.
    """
    chosen = []
    for s in group.references:
        same = [
            f for f in found if layer_of(f) == layer_of(s) and site_kind(f) == site_kind(s) and _size(f) == _size(s)
        ]
        if not same:
            return None
        chosen.append(min(same, key=lambda f: (_seed(f), f.id)))
    return Group(name, tuple(chosen))


def _size(reference: DictionaryRef) -> Any:
    """What makes two dictionaries comparable: d_sae and k, as far as their names and numbers say."""
    found = re.search(r"-(\d+)x(?:.*?(\.k\d+))?", reference.id)
    return found.groups() if found else reference.metadata.get("d_sae")


def sae_seed_of(workspace: Workspace, group: Group) -> Group | None:
    """The same model's dictionaries of another seed: the ceiling of what dictionaries of these sizes can agree on."""
    found = [
        s
        for s in all_references(workspace)
        if (s.metadata.get("model_name"), s.revision) == group.model and _seed(s) != group.seed
    ]
    return _matching(group, found, f"{group.name} (other SAE seed)")


def model_seed_of(workspace: Workspace, group: Group) -> Group | None:
    """Dictionaries of the same architecture trained from another seed: models called ``<name>-s<number>``."""
    name, revision = group.model
    base = SEED_NAME.sub("", name)
    found = [
        s
        for s in all_references(workspace)
        if s.metadata.get("model_name") not in (None, name)
        and SEED_NAME.sub("", str(s.metadata["model_name"])) == base
        and s.revision == revision
    ]
    return _matching(group, found, f"{group.name} (other model seed)")


def untrained_of(workspace: Workspace, group: Group) -> Group | None:
    """Dictionaries trained on the same model before its first step."""
    name, revision = group.model
    if revision == "step0":
        return None
    found = [s for s in all_references(workspace) if s.metadata.get("model_name") == name and s.revision == "step0"]
    return _matching(group, found, f"{group.name} (untrained)")
