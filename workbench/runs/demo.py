"""The main job on the bundled models: activations, dictionaries, latent records and a first run of every analysis, then
the browser.

Every step writes one kind of result and reuses what is complete, so a second run takes seconds and an interrupted one
goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import workbench
from sae.changes import said
from sae.errors import MismatchError
from workbench.config import read_recipe
from workbench.models.pointers import register_bundled
from workbench.run import Run
from workbench.workspace import Item, Workspace

HARVEST, TRAIN, EVOLVE = "demo-harvest", "demo-train", "demo-evolve"
MODELS = ("mini-pythia", "mini-mamba")
PROMPT = "def __init__(self"  # one prediction, followed through all layers
TEXT = "def read(self, size):\n    return self.read(size)"  # what each layer keeps of it
SNAPSHOTS = 4
COMPARED, PROMPTS = 50_000, 32  # tokens and prompts: a demonstration, not a measurement


@dataclass(frozen=True)
class Step:
    """One step of the demo: a title for the terminal and a function from a workspace to the ids of what it made."""

    title: str
    run: Callable[[Workspace, Run], list[str]]


def steps() -> list[Step]:
    """The demo's steps in order."""
    return [
        Step("models", _models),
        Step("activations", _harvest),
        Step("dictionaries", _train),
        Step("latent records", _features),
        Step("labels", _label),
        Step("matches", _compare),
        Step("circuits", _circuits),
        Step("evolution", _evolve),
        Step("graph", _graph),
        Step("states", _states),
    ]


def _models(workspace: Workspace, run: Run) -> list[str]:
    return register_bundled(workspace, MODELS)


def _harvest(workspace: Workspace, run: Run) -> list[str]:
    return [workbench.harvest(workspace, HARVEST, run=run).id]


def _train(workspace: Workspace, run: Run) -> list[str]:
    return [item.id for item in workbench.train(workspace, TRAIN, run=run).all]


def _features(workspace: Workspace, run: Run) -> list[str]:
    return [
        _kept("latents", id, partial(workbench.features, workspace, id, run=run), workspace, run)
        for id in _trained_ids(workspace)
    ]


def _label(workspace: Workspace, run: Run) -> list[str]:
    return [
        _kept("explanations", f"{id}.rules", partial(workbench.explain, workspace, id, run=run), workspace, run)
        for id in _trained_ids(workspace)
    ]


def _compare(workspace: Workspace, run: Run) -> list[str]:
    return [
        _kept(
            "matches",
            "__".join(MODELS),
            partial(workbench.compare, workspace, MODELS, tokens=COMPARED, run=run),
            workspace,
            run,
        )
    ]


def _circuits(workspace: Workspace, run: Run) -> list[str]:
    return [
        _kept(
            "circuits",
            f"{name}.induction",
            partial(workbench.circuits, workspace, name, prompts=PROMPTS, control="none", run=run),
            workspace,
            run,
        )
        for name in MODELS
    ]


def _evolve(workspace: Workspace, run: Run) -> list[str]:
    return [workbench.evolve(workspace, EVOLVE, run=run).id]


def _graph(workspace: Workspace, run: Run) -> list[str]:
    return [workbench.graph(workspace, PROMPT, model=MODELS[0], run=run).id]


def _states(workspace: Workspace, run: Run) -> list[str]:
    from workbench.analysis.memory.run import read_texts
    from workbench.models.load import load_tokenizer

    tokenizer = load_tokenizer(MODELS[0])  # the models share it
    read = read_texts(tokenizer, [TEXT], task="", prompts=1, length=None, seed=0, size=len(tokenizer))
    return [
        _kept(
            "states",
            f"{name}.{read.name}",
            partial(workbench.states, workspace, name, text=[TEXT], snapshots=SNAPSHOTS, run=run),
            workspace,
            run,
        )
        for name in MODELS
    ]


def _kept(kind: str, id: str, make: Callable[[], Item], workspace: Workspace, run: Run) -> str:
    """Make an analysis, or keep the one that was made with other settings: there is something to look at."""
    try:
        item = make()
        run.say(f"{item.id}: {kind}")
        return item.id
    except MismatchError as e:
        if not workspace.complete(kind, id):
            raise
        run.say(f"{id}: kept as it is ({said(e.found)})")
        return id


def _trained_ids(workspace: Workspace) -> list[str]:
    from workbench.activations import ActivationStore
    from workbench.dictionaries.recipe import TrainRecipe, jobs_of

    recipe = read_recipe(TrainRecipe, TRAIN)
    store = ActivationStore.open(workspace.get("stores", recipe.store).path)
    return [job.id for job in jobs_of(recipe, store)]


def prepare(workspace: Workspace, run: Run) -> None:
    """The demo's models, store and dictionaries, without what only the browser needs."""
    register_bundled(workspace, MODELS)
    _harvest(workspace, run)
    _train(workspace, run)


def run_demo(workspace: Workspace, run: Run) -> dict[str, Any]:
    """Run every step; returns what was made per step, with seconds."""
    out: dict[str, Any] = {}
    for step in steps():
        begin = time.perf_counter()
        run.say(f"— {step.title}")
        ids = step.run(workspace, run)
        out[step.title] = {"ids": ids, "seconds": round(time.perf_counter() - begin, 1)}
    return out
