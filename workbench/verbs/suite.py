"""What a training recipe wants done with its dictionaries: each measured inside its model, the figure of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from workbench.dictionaries.recipe import TrainRecipe
from workbench.run import QUIET, Run, command_of
from workbench.workspace import Workspace


def evaluate_all(recipe: TrainRecipe, workspace: Workspace, ids: Sequence[str], run: Run) -> None:
    """Every dictionary inside its model; each model is loaded once, complete evaluations are reused."""
    from workbench.analysis.evaluation.run import EvaluationRequest, evaluate_dictionary
    from workbench.dictionaries.reference import find_dictionary
    from workbench.models import load_model

    at: tuple[str, str | None] | None = None
    model: Any = None
    for id in ids:
        reference = find_dictionary(workspace, id)
        if at != (reference.model_name, reference.revision):
            at = (reference.model_name, reference.revision)
            model = load_model(*at)
        command = command_of("evaluate", [id], {"sequences": recipe.evaluate}, {})
        own = replace(run, command=command, say=QUIET.say)  # its result is said below, made now or reused
        item = evaluate_dictionary(
            workspace, reference, EvaluationRequest(sequences=recipe.evaluate), model=model, run=own
        )
        n = item.manifest.numbers
        ev, l0, delta = (n[k]["value"] for k in ("ev", "l0", "delta_ce"))
        run.say(f"{id}, put into the model: explained variance {ev:.3f}, L0 {l0:.1f}, loss {delta:+.3f} nats")


def export_summary(recipe: TrainRecipe, workspace: Workspace, run: Run) -> None:
    """The figure of all dictionaries of the recipe's store."""
    from workbench.exporting.bundles import bundle, write_bundle
    from workbench.exporting.spec import FigureSpec

    source = f"stores/{recipe.store}"
    spec = FigureSpec.model_validate({"figure": "suite_summary", "source": source, "style": {"width": 10.0}})
    command = command_of("export", ["suite_summary"], {"source": source}, {})
    item = write_bundle(bundle(spec, workspace), workspace, run=replace(run, command=command, say=QUIET.say))
    run.say(f"figure: {item.path}")
