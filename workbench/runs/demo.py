"""The main job on the bundled models: activations, dictionaries, latent records and a first run of every analysis, then
the browser.

Every step writes one kind of result and reuses what is complete, so a second run takes seconds and an interrupted one
goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sae.errors import MissingError
from workbench.config import read_recipe
from workbench.provenance import read_manifest
from workbench.workspace import Workspace

HARVEST, TRAIN, EVOLVE = "demo-harvest", "demo-train", "demo-evolve"
MODELS = ("mini-pythia", "mini-mamba")
COMPARED, PROMPTS = 50_000, 32  # tokens and prompts: a demonstration, not a measurement


@dataclass(frozen=True)
class Step:
    """One step of the demo: a title for the terminal and a function from a workspace to the ids of what it made."""

    title: str
    run: Callable[[Workspace, Callable[[str], None]], list[str]]


def steps() -> list[Step]:
    """The demo's steps in order."""
    return [
        Step("models", register_models),
        Step("activations", _harvest),
        Step("dictionaries", _train),
        Step("latent records", _features),
        Step("labels", _label),
        Step("matches", _compare),
        Step("circuits", _circuits),
        Step("evolution", _evolve),
    ]


def register_models(workspace: Workspace, say: Callable[[str], None]) -> list[str]:
    """A pointer in ``models/`` for every bundled model the demo reads, with the numbers of its card.

    Raises:
        MissingError: the bundled models are not installed.
    """
    from sae.files import sha256_json, write_json
    from workbench.config import data_dir
    from workbench.models.load import bundled, revisions

    names = [n for n in bundled() if n in MODELS]
    if not names:
        raise MissingError(f"the bundled models are missing in {data_dir() / 'models'}. Reinstall the package.")
    for name in names:
        if workspace.complete("models", name):
            continue
        card = read_manifest(data_dir() / "models" / name)
        pointer = {
            "bundled": name,
            "revisions": revisions(name),
            "manifest_sha256": sha256_json(card.model_dump(mode="json")),
        }
        with workspace.create(
            "models", name, command="workbench demo", numbers=_headline(card.numbers), metadata=pointer
        ) as folder:
            write_json(folder / "pointer.json", pointer)
    return names


def _headline(numbers: dict[str, Any]) -> dict[str, Any]:
    """The plain numbers of a model's own manifest, its criteria on held-out prompts among them."""
    plain = {k: v for k, v in numbers.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    criteria = numbers.get("criteria", {})
    return (
        plain
        | {"heldout_loss": criteria.get("loss")}
        | {k: criteria[k] for k in ("copy_gap", "single_match", "agreement") if k in criteria}
    )


def _harvest(workspace: Workspace, say: Callable[[str], None]) -> list[str]:
    from workbench.activations import HarvestRecipe, harvest

    recipe = read_recipe(HarvestRecipe, HARVEST)
    harvest(recipe, workspace)
    return [recipe.id]


def _train(workspace: Workspace, say: Callable[[str], None]) -> list[str]:
    from workbench.dictionaries.train import TrainRecipe, train_recipe

    return train_recipe(read_recipe(TrainRecipe, TRAIN), workspace, command=f"workbench train {TRAIN}", say=say)


def _features(workspace: Workspace, say: Callable[[str], None]) -> list[str]:
    from workbench.analysis.latents.records_run import make_records
    from workbench.dictionaries.reference import find_dictionary
    from workbench.models import load_model

    wanted = set(_trained_ids(workspace))
    made: list[str] = []
    loaded: tuple[tuple[str, str | None], Any] | None = None  # one model at a time: they are read in order
    for item in workspace.items("dictionaries"):
        if item.id not in wanted:
            continue
        made.append(item.id)
        if workspace.complete("latents", item.id):
            say(f"{item.id}: records complete, reused")
            continue
        planned = find_dictionary(workspace, item.id)
        name = (planned.model_name, planned.revision)
        if loaded is None or loaded[0] != name:
            loaded = (name, load_model(*name))
        say(f"{item.id}: records")
        make_records(workspace, planned, model=loaded[1], command=f"workbench features {item.id}")
    return made


def _label(workspace: Workspace, say: Callable[[str], None]) -> list[str]:
    from workbench.analysis.explain.run import explain_by_rule
    from workbench.dictionaries.reference import find_dictionary

    made = []
    for id in _trained_ids(workspace):
        say(f"{id}: labels by rule")
        made.append(explain_by_rule(workspace, find_dictionary(workspace, id), command=f"workbench explain {id}").id)
    return made


def _compare(workspace: Workspace, say: Callable[[str], None]) -> list[str]:
    from workbench.analysis.comparison.compare import CompareRecipe
    from workbench.analysis.comparison.run import compare_and_write

    command = f"workbench compare {' '.join(MODELS)} --tokens {COMPARED}"
    return [compare_and_write(workspace, *MODELS, CompareRecipe(tokens=COMPARED), command=command).id]


def _circuits(workspace: Workspace, say: Callable[[str], None]) -> list[str]:
    from workbench.analysis.circuits.run import make_circuits

    made = []
    for name in MODELS:
        say(f"{name}: induction")
        command = f"workbench circuits {name} --prompts {PROMPTS} --control none"
        made.append(make_circuits(workspace, name, n_prompts=PROMPTS, control=None, command=command).id)
    return made


def _evolve(workspace: Workspace, say: Callable[[str], None]) -> list[str]:
    from workbench.analysis.evolution.plan import EvolveRecipe, evolve

    return [evolve(read_recipe(EvolveRecipe, EVOLVE), workspace, command=f"workbench evolve {EVOLVE}", say=say)]


def _trained_ids(workspace: Workspace) -> list[str]:
    from workbench.activations import ActivationStore
    from workbench.dictionaries.train import TrainRecipe, jobs_of

    recipe = read_recipe(TrainRecipe, TRAIN)
    store = ActivationStore.open(workspace.get("stores", recipe.store).path)
    return [job.id for job in jobs_of(recipe, store)]


def prepare(workspace: Workspace, say: Callable[[str], None]) -> None:
    """The demo's models, store and dictionaries, without what only the browser needs."""
    register_models(workspace, say)
    _harvest(workspace, say)
    _train(workspace, say)


def run_demo(workspace: Workspace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run every step; returns what was made per step, with seconds."""
    out: dict[str, Any] = {}
    for step in steps():
        begin = time.perf_counter()
        say(f"— {step.title}")
        ids = step.run(workspace, say)
        out[step.title] = {"ids": ids, "seconds": round(time.perf_counter() - begin, 1)}
    return out
