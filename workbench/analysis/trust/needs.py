"""The dictionaries a card is held against: another seed of the dictionary, of the model, and the untrained model.

Those in the workspace are taken where they were trained with the same settings (latents, k, steps, batch, everything
under ``[sae]``) on the same hook. What is missing is made: the model is harvested on the very tokens of the
dictionary's own store, and a dictionary is trained with its own recipe. Both go on where they stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sae.errors import MissingError, UsageError, UserError
from sae.files import read_json
from workbench.analysis.comparison.sides import SEED_NAME, all_references
from workbench.analysis.trust.parts import Parts
from workbench.config import as_recipe
from workbench.corpus import TokenPlan
from workbench.dictionaries.recipe import TrainRecipe
from workbench.dictionaries.reference import DictionaryRef, find_dictionary
from workbench.provenance import MANIFEST, read_manifest
from workbench.run import QUIET, Run, command_of
from workbench.workspace import Workspace

ROLES = {
    "seed": "another seed of the dictionary",
    "model_seed": "another seed of the model",
    "untrained": "the untrained model",
}
UNTRAINED = "step0"


@dataclass(frozen=True)
class Needs:
    """Role -> the dictionary that plays it; those missing with the reason."""

    found: dict[str, DictionaryRef] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def find_or_make(
    workspace: Workspace, own: DictionaryRef, *, make: bool, run: Run = QUIET, parts: Parts | None = None
) -> Needs:
    """Find the dictionaries of :data:`ROLES`, and make those that are missing where ``make``, each a part of ``parts``.

    Raises:
        UserError: what harvesting and training may refuse.
    """
    needs, parts = Needs(), parts or Parts(run)
    todo: list[tuple[str, str, str | None]] = []
    places: dict[str, Callable[[], tuple[str, str | None]]] = {
        "seed": lambda: (own.model_name, own.revision),
        "model_seed": lambda: _other_model(workspace, own),
        "untrained": lambda: _untrained(own),
    }
    for role, place in places.items():
        try:
            model, revision = place()
            found = _in_workspace(workspace, own, role, model, revision)
            if found is None:
                if not make:
                    raise MissingError(f"no dictionary of {ROLES[role]} at its settings is in the workspace")
                todo.append((role, model, revision))
            else:
                needs.found[role] = found
        except _NotAtHand as e:
            needs.missing[role] = str(e)
        except MissingError as e:
            if make:
                raise
            needs.missing[role] = str(e)
    parts.total += len(todo)
    for role, model, revision in todo:
        try:
            with parts.part(f"a dictionary of {ROLES[role]}"):
                needs.found[role] = _make(workspace, own, role, model, revision, run)
        except _NotAtHand as e:
            needs.missing[role] = str(e)
    ordered = {role: needs.found[role] for role in ROLES if role in needs.found}
    return Needs(ordered, needs.missing)


class _NotAtHand(UserError):
    """There is no such model, or it cannot be known how the dictionary was trained."""


def _other_model(workspace: Workspace, own: DictionaryRef) -> tuple[str, str | None]:
    """A model called ``<name>-s<number>`` (or without it), which is the same model from another seed."""
    from workbench.models.load import bundled, revisions

    base = SEED_NAME.sub("", own.model_name)
    names = {base, *bundled(), *(i.id for i in workspace.items("models"))}
    same = sorted(n for n in names if SEED_NAME.sub("", n) == base and n != own.model_name)
    for name in same:
        try:
            there = revisions(name)
        except UserError:
            continue
        if own.revision is None or own.revision in there:
            return name, own.revision
    raise _NotAtHand(f"no model {base}-s<number>, which would be another seed of {own.model_name}, is at hand")


def _untrained(own: DictionaryRef) -> tuple[str, str | None]:
    from workbench.models.load import revisions

    if own.revision == UNTRAINED:
        raise _NotAtHand(f"{own.id} is of the untrained model itself")
    try:
        there = revisions(own.model_name)
    except UserError:
        there = []
    if UNTRAINED not in there:
        raise _NotAtHand(f"{own.model_name} has no snapshot {UNTRAINED}, its untrained weights")
    return own.model_name, UNTRAINED


def settings_of(reference: DictionaryRef) -> dict[str, Any]:
    """What two dictionaries share that differ in their seed alone; of one that was not trained here only its size."""
    cfg = read_json(reference.path / "cfg.json")
    size = {"d_sae": cfg.get("d_sae"), "k": cfg.get("k")}
    if not (reference.path / MANIFEST).is_file():
        return size
    manifest = read_manifest(reference.path)
    recipe, numbers = manifest.recipe, manifest.numbers
    if "expansions" not in recipe:
        return size
    return {
        "d_sae": numbers.get("d_sae"),
        "k": numbers.get("k"),
        "steps": numbers.get("steps"),
        "batch_size": recipe.get("batch_size"),
        "sae": recipe.get("sae") or {},
    }


def _seed(reference: DictionaryRef) -> int:
    return int(reference.metadata.get("seed") or 0)


def _in_workspace(
    workspace: Workspace, own: DictionaryRef, role: str, model: str, revision: str | None
) -> DictionaryRef | None:
    """The one with the lowest seed (of another than the dictionary's own, where that is the role)."""
    wanted = settings_of(own)
    found = [
        s
        for s in all_references(workspace)
        if s.metadata.get("model_name") == model
        and s.revision == revision
        and s.metadata.get("hook_name") == own.metadata.get("hook_name")
        and s.metadata.get("hook_name_out") == own.metadata.get("hook_name_out")
        and s.id != own.id
        and (role != "seed" or _seed(s) != _seed(own))
        and settings_of(s) == wanted
    ]
    return min(found, key=lambda s: (_seed(s), s.id), default=None)


def _make(
    workspace: Workspace, own: DictionaryRef, role: str, model: str, revision: str | None, run: Run
) -> DictionaryRef:
    from workbench.activations import ActivationStore
    from workbench.dictionaries.train import train_recipe

    if "sae" not in settings_of(own):
        raise _NotAtHand(f"how {own.id} was trained is not known here, so no other can be trained like it")
    store = str(own.metadata["store"])
    if role != "seed":
        store = _harvest(workspace, own, model, revision, run)
    opened = ActivationStore.open(workspace.get("stores", store).path)
    recipe = _recipe(workspace, own, opened, model, revision, other_seed=role == "seed")
    command = command_of("train", [recipe], {}, {})
    (id,) = train_recipe(recipe, workspace, run=replace(run, command=command, replace=False))
    return find_dictionary(workspace, id)


def _harvest(workspace: Workspace, own: DictionaryRef, model: str, revision: str | None, run: Run) -> str:
    """Id of a store with the model's activations at the dictionary's hooks, on the tokens of the dictionary's store."""
    from workbench.activations import HarvestRecipe, harvest
    from workbench.models import model_id

    tokens = own.store(workspace)
    was = as_recipe(HarvestRecipe, f"stores/{tokens.spec.id}", workspace)
    hooks = tuple(dict.fromkeys([str(own.hook), own.hook_out]))
    name = f"{model_id(model)}@{revision}" if revision else model_id(model)
    site = own.metadata.get("site") or hooks[0].replace(".", "-")
    changes = {"id": f"{tokens.spec.id}.{name}.{site}", "hooks": hooks, "workers": 1}
    recipe = HarvestRecipe.model_validate(
        {**was.model_dump(), **changes, "sources": [{"model": model, "revision": revision}]}
    )
    if not workspace.complete("stores", recipe.id):
        run.say(f"harvesting {recipe.id}: {name} on the tokens of {tokens.spec.id}")
    command = command_of("harvest", [recipe], {}, {})
    harvest(recipe, workspace, plan=_plan_of(tokens), run=replace(run, command=command, replace=False))
    return recipe.id


def _plan_of(store: Any) -> TokenPlan:
    """The tokens a store was harvested on, whatever text they were cut from."""
    documents, kinds = store.documents()
    tokens = np.stack([store.sequence_tokens(i) for i in range(store.n_seq)])
    return TokenPlan(tokens, documents, kinds, dict(store.spec.plan.get("about") or {}), store.contract)


def _recipe(
    workspace: Workspace,
    own: DictionaryRef,
    store: Any,
    model: str,
    revision: str | None,
    *,
    other_seed: bool,
) -> TrainRecipe:
    """The dictionary's own recipe for this one site, size and seed."""
    manifest = read_manifest(own.path)
    was, numbers = TrainRecipe.model_validate(manifest.recipe), manifest.numbers
    sources = [s.name for s in store.spec.sources if s.model == model and s.revision == revision]
    if len(sources) != 1:
        raise UsageError(
            f"store {store.spec.id} holds {len(sources)} sources of {model} (several snapshots of it), and a card"
            " needs one. Harvest it alone into another store."
        )
    seed = _seed(own)
    if other_seed:
        taken = {_seed(s) for s in all_references(workspace) if s.id.split(".s")[0] == own.id.split(".s")[0]}
        seed = next(s for s in range(len(taken) + 2) if s not in taken and s != seed)
    k = int(numbers["k"])
    suffix = "-".join(x for x in (f"k{k}" if len(was.ks) > 1 else "", was.suffix) if x)
    changes = {
        "store": store.spec.id,
        "sources": tuple(sources),
        "sites": (str(own.metadata["site"]),),
        "expansions": (int(numbers["d_sae"]) // int(numbers["d_in"]),),
        "ks": (k,),
        "seeds": (seed,),
        "suffix": suffix,
    }
    afterwards = {"harvest": "", "evaluate": 0, "summary": False, "log_to": ()}  # nothing that is done with the results
    return was.model_copy(update=changes | afterwards)
