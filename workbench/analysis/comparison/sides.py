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
from workbench.dictionaries.reference import Subject, find_subject
from workbench.workspace import Workspace

_LAYER = re.compile(r"blocks\.(\d+)\.|L(\d+)[A-Z]")
_SEED_NAME = re.compile(r"-s(?:eed)?-?\d+$")


@dataclass(frozen=True)
class Group:
    """Dictionaries of one model, at most one per layer, in order of depth."""

    name: str  # what it is called in ids and figures
    subjects: tuple[Subject, ...]

    @property
    def layers(self) -> list[int]:
        """Layer of each dictionary."""
        return [layer_of(s) for s in self.subjects]

    @property
    def model(self) -> tuple[str, str | None]:
        """(model name, revision) the dictionaries belong to."""
        return self.subjects[0].model_name, self.subjects[0].revision

    @property
    def seed(self) -> int:
        """Training seed of the dictionaries."""
        return int(self.subjects[0].metadata.get("seed") or 0)


def layer_of(subject: Subject) -> int:
    """Layer of a dictionary's site; 0 where its hook names none."""
    found = _LAYER.search(str(subject.metadata.get("hook_name") or subject.metadata.get("site") or ""))
    return int(found[1] or found[2]) if found else 0


def site_kind(subject: Subject) -> str:
    """``R``, ``A``, ``M``, ``TC`` or ``S``; empty where the dictionary does not say."""
    found = re.fullmatch(r"L\d+([A-Z]+)", str(subject.metadata.get("site") or ""))
    if found:
        return found[1]
    return "R" if "resid" in str(subject.metadata.get("hook_name") or "") else ""


def find_group(workspace: Workspace, reference: str, *, pattern: str = "") -> Group:
    """The dictionaries that A or B on a command line means.

    Args:
        pattern: part of the ids to choose by where a model has several dictionaries per layer (``-8x``).

    Raises:
        MissingError: neither a dictionary nor a model with residual dictionaries. UsageError: several per layer.
    """
    catalogue = all_subjects(workspace)
    if reference in {s.id for s in catalogue}:
        subject = find_subject(workspace, reference)
        return Group(subject.id, (subject,))
    own = [s for s in catalogue if reference in (_called(s), str(s.metadata.get("model_name"))) and _plain_residual(s)]
    own = [s for s in own if _called(s) == reference] or [s for s in own if s.revision is None]
    if not own:
        try:
            subject = find_subject(workspace, reference)
        except MissingError:
            names = sorted({_called(s) for s in catalogue} | {s.id for s in catalogue})
            hint = nearest(reference, names) if names else "it has no dictionary; `workbench train` makes some"
            raise MissingError(
                f"{reference!r} is neither a dictionary nor a model with residual dictionaries in {workspace.root}"
                f" ({hint})"
            ) from None
        return Group(subject.id, (subject,))
    lowest = min(_seed(s) for s in own)
    own = [s for s in own if _seed(s) == lowest and pattern in s.id]
    return Group(reference, _one_per_layer(own, reference))


def all_subjects(workspace: Workspace) -> list[Subject]:
    """Every complete dictionary of the workspace."""
    return [find_subject(workspace, item.id) for item in workspace.items("dictionaries")]


def _called(subject: Subject) -> str:
    """``<model>[@revision]`` as ids write it."""
    name = str(subject.metadata.get("model_name") or "").rstrip("/").split("/")[-1]
    return f"{name}@{subject.revision}" if subject.revision else name


def _plain_residual(subject: Subject) -> bool:
    return str(subject.metadata.get("kind", "sae")) == "sae" and site_kind(subject) == "R"


def _seed(subject: Subject) -> int:
    return int(subject.metadata.get("seed") or 0)


def _one_per_layer(subjects: list[Subject], name: str) -> tuple[Subject, ...]:
    by_layer: dict[int, Subject] = {}
    for s in sorted(subjects, key=lambda s: (layer_of(s), s.id)):
        if layer_of(s) in by_layer:
            raise UsageError(
                f"{name} has several residual dictionaries at layer {layer_of(s)}: {by_layer[layer_of(s)].id}, {s.id}."
                " Choose with --pattern, for example --pattern -8x."
            )
        by_layer[layer_of(s)] = s
    if not by_layer:
        raise UsageError(f"no dictionary of {name} matches --pattern.")
    return tuple(by_layer.values())


def _matching(group: Group, found: list[Subject], name: str) -> Group | None:
    """Those of ``found`` that stand for the group's layers with the same number of latents.

    None unless all layers have one.
    """
    chosen = []
    for s in group.subjects:
        same = [
            f for f in found if layer_of(f) == layer_of(s) and site_kind(f) == site_kind(s) and _size(f) == _size(s)
        ]
        if not same:
            return None
        chosen.append(min(same, key=lambda f: (_seed(f), f.id)))
    return Group(name, tuple(chosen))


def _size(subject: Subject) -> Any:
    """What makes two dictionaries comparable: d_sae and k, as far as their names and numbers say."""
    found = re.search(r"-(\d+)x(?:.*?(\.k\d+))?", subject.id)
    return found.groups() if found else subject.metadata.get("d_sae")


def sae_seed_of(workspace: Workspace, group: Group) -> Group | None:
    """The same model's dictionaries of another seed: the ceiling of what dictionaries of these sizes can agree on."""
    found = [
        s
        for s in all_subjects(workspace)
        if (s.metadata.get("model_name"), s.revision) == group.model and _seed(s) != group.seed
    ]
    return _matching(group, found, f"{group.name} (other SAE seed)")


def model_seed_of(workspace: Workspace, group: Group) -> Group | None:
    """Dictionaries of the same architecture trained from another seed: models called ``<name>-s<number>``."""
    name, revision = group.model
    base = _SEED_NAME.sub("", name)
    found = [
        s
        for s in all_subjects(workspace)
        if s.metadata.get("model_name") not in (None, name)
        and _SEED_NAME.sub("", str(s.metadata["model_name"])) == base
        and s.revision == revision
    ]
    return _matching(group, found, f"{group.name} (other model seed)")


def untrained_of(workspace: Workspace, group: Group) -> Group | None:
    """Dictionaries trained on the same model before its first step."""
    name, revision = group.model
    if revision == "step0":
        return None
    found = [s for s in all_subjects(workspace) if s.metadata.get("model_name") == name and s.revision == "step0"]
    return _matching(group, found, f"{group.name} (untrained)")
