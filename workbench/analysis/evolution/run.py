"""Follow latents over training: train the crosscoders of a plan (or reuse them), analyse, write ``evolution/<id>/``.

What the folder holds is described in :mod:`workbench.results.evolution`, its reader.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from workbench.analysis.evolution.plan import EvolutionPlan
from workbench.corpus.documents import remember_inputs
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace


def run_plan(plan: EvolutionPlan, workspace: Workspace, *, run: Run = QUIET) -> Item:
    """The complete ``evolution/`` of a plan, made in this process; reused where it is there."""
    import torch

    from workbench.analysis.evolution.analyse import analyse
    from workbench.analysis.evolution.baselines import track
    from workbench.analysis.evolution.train import load_crosscoder, train_plans
    from workbench.results.evolution import Evolution

    if (have := plan.analysed(workspace, run)) is not None:
        return have
    recipe = plan.recipe
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    train_plans([plan, *plan.beside], workspace, run=run)
    beside = {item.id: item for item in [run_plan(other, workspace, run=run) for other in plan.beside]}
    cc = load_crosscoder(plan, workspace)
    tracked = track(plan, workspace, run=run) if recipe.baseline else {}
    run.say("analysing")
    numbers: dict[str, Any] = {}
    about = plan.describe() | {"n_latents": cc.d_sae}
    with workspace.create(
        "evolution",
        plan.id,
        replace=True,
        command=run.command,
        recipe=recipe.model_dump(mode="json"),
        inputs=[workspace.get("dictionaries", i).as_input() for i in [plan.id, *itertools.chain(*tracked.values())]]
        + [item.as_input() for item in beside.values()]
        + plan.read,
        metadata=lambda: about,
        numbers=lambda: numbers,
    ) as folder:
        paths = {kind: [workspace.path("dictionaries", t) for t in ids] for kind, ids in tracked.items()}
        others = {id: Evolution.open(item.path) for id, item in beside.items()}
        more, more_about = analyse(plan, cc, Path(folder), tracked=paths, beside=others, run=run)
        numbers |= more
        about |= more_about
    remember_inputs(recipe.corpus, plan.read)
    return workspace.get("evolution", plan.id)
