"""The crosscoders of evolution plans: their configuration, their rows (online, or an aligned store), their training.

There is one way: all plans that differ only in their site are trained on one pass over the rows, by one process or
several.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import ConfigError
from sae.strict import parse_config
from workbench.analysis.evolution.plan import OTHERWISE
from workbench.analysis.evolution.rows import Columns, LastBatches, aligned_store, store_batches
from workbench.dictionaries.publish import publish, work_folder
from workbench.provenance import Input
from workbench.run import QUIET, Run
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from crosscoders import Crosscoder, CrosscoderConfig
    from sae.parallel import Ranks
    from workbench.analysis.evolution.plan import EvolutionPlan
    from workbench.analysis.evolution.recipe import EvolveRecipe
    from workbench.analysis.evolution.snapshots import Source


def crosscoder_config(recipe: EvolveRecipe, sources: Sequence[Source], widths: list[int]) -> CrosscoderConfig:
    """The crosscoder a recipe asks for.

    Raises:
        ConfigError: an unknown preset or key (the nearest is named); or decoders to be fitted anew that a penalty or a
        partition shapes.
    """
    from crosscoders import CrosscoderConfig, preset
    from crosscoders.config import DEAD_AFTER, by_todays_names
    from sae.presets import merged

    sizes = {"widths": widths, "d_sae": recipe.expansion * widths[0], "k": recipe.k}
    base = (
        preset(recipe.preset, **sizes).model_dump(exclude_defaults=True)
        if recipe.preset
        else {"dead_after": DEAD_AFTER}
    )
    values = (
        merged(base, by_todays_names(recipe.crosscoder, base))
        | sizes
        | {"sources": [s.name for s in sources], "seed": recipe.seed}
    )
    config = parse_config(CrosscoderConfig, values, where="[crosscoder]")
    if recipe.refit and (
        config.activation.kind not in ("topk", "batchtopk") or config.shared_latents or config.dedicated
    ):
        raise ConfigError(
            f"refit = {recipe.refit} would undo what the penalty, or the split into shared and own latents, did to the"
            " decoders. Use it with topk or batchtopk and without shared_latents or dedicated."
        )
    return config


def train_plans(
    plans: Sequence[EvolutionPlan], workspace: Workspace, *, run: Run = QUIET, ranks: Ranks | None = None
) -> None:
    """Train the crosscoders of ``plans`` that the workspace lacks, on one pass over the rows: a model is run once for
    all its sites. Each comes out as it would alone; an interrupted training goes on where it stopped.

    Args:
        plans: of one recipe; they differ in their site. ranks: the processes that train together, each of which calls
            this; None where there is one.

    Raises:
        MismatchError: a crosscoder of one of these ids is there, or was begun, with other settings. UserError: in every
            process, that of the first in which something failed.
    """
    from sae import train_many
    from sae.parallel import SINGLE_PROCESS

    ranks = ranks or SINGLE_PROCESS
    finished = ranks.broadcast(
        ranks.run_everywhere(
            lambda: [plan.trained(workspace, run) is not None for plan in plans] if ranks.is_rank_zero else None
        )
    )
    todo = [plan for plan, done in zip(plans, finished, strict=True) if not done]
    if not todo:
        return
    recipe = todo[0].recipe
    inputs, rows, widths = ranks.run_everywhere(lambda: _rows(todo, workspace, run, ranks))
    configs, columns, at = {}, {}, 0
    for plan in todo:
        own, widths = widths[: len(plan.sources)], widths[len(plan.sources) :]
        configs[plan.id] = crosscoder_config(plan.recipe, plan.sources, own)
        columns[plan.id] = slice(at, at := at + sum(own))
    who = "" if ranks.world == 1 else f" by {ranks.world} processes ({ranks})"
    names = ", ".join(s.name for s in todo[0].sources)
    run.say(
        f"crosscoders at {', '.join(p.recipe.site for p in todo)} over {len(todo[0].sources)} sources{who}: {names}"
    )
    seen = LastBatches(rows, min(-(-recipe.refit // recipe.batch_size), recipe.steps))
    about = {plan.id: _metadata(plan, configs[plan.id]) for plan in todo}
    batches = Columns(seen, columns)
    folders = ranks.broadcast(
        ranks.run_everywhere(lambda: _folders(todo, configs, batches, workspace, run) if ranks.is_rank_zero else None)
    )
    made = train_many(
        configs,
        batches,
        total_steps=recipe.steps,
        out=folders[todo[0].id].parent,
        resume=True,
        metadata=about,
        ranks=ranks,
    )

    def finish(plan: EvolutionPlan) -> None:
        """Fit the decoders where the recipe says so, and complete the folder."""
        from sae.refitting import refit

        cc: Any = made[plan.id]
        if recipe.refit:
            cc = refit(cc, (x[:, columns[plan.id]] for x in seen.rows(recipe.steps)))
            cc.save(folders[plan.id])
        sizes = {"d_in": cc.d_in, "d_sae": cc.d_sae, "k": recipe.k, "steps": recipe.steps, "n_sources": len(cc.widths)}
        publish(
            workspace,
            folders[plan.id],
            plan.id,
            recipe=plan.recipe,
            inputs=[*inputs, *plan.read],
            numbers=sizes,
            metadata=about[plan.id] | {"sources": list(cc.sources), "seed": recipe.seed},
            run=run,
        )

    for plan in todo:
        ranks.run_everywhere(lambda plan=plan: finish(plan) if ranks.is_rank_zero else None)  # type: ignore[misc]


def _folders(
    todo: Sequence[EvolutionPlan], configs: dict[str, Any], batches: Columns, workspace: Workspace, run: Run
) -> dict[str, Path]:
    """Where the crosscoders are trained, all in folders of one parent: in place, or where one of them replaces an older
    one, all beside.

    Raises:
        MismatchError: one was begun with other settings.
    """
    from sae.loop import contract

    found = {}
    for plan in todo:
        own = contract(configs[plan.id], plan.recipe.steps, batches)
        found[plan.id] = work_folder(workspace, plan.id, own, run, otherwise=OTHERWISE)
    anew = [id for id, folder in found.items() if folder != workspace.path("dictionaries", id)]
    if not anew:
        return found
    for id in found.keys() - set(anew):
        shutil.rmtree(workspace.next_path("dictionaries", id), ignore_errors=True)
    return {id: workspace.next_path("dictionaries", id) for id in found}


def load_crosscoder(plan: EvolutionPlan, workspace: Workspace) -> Crosscoder:
    """The finished crosscoder of a plan."""
    from crosscoders import Crosscoder

    return Crosscoder.load(workspace.path("dictionaries", plan.id))


def _rows(
    plans: list[EvolutionPlan], workspace: Workspace, run: Run, ranks: Ranks
) -> tuple[list[Input], Any, list[int]]:
    """(inputs, batches, widths of all sources) of what the plans train on, side by side."""
    from workbench.analysis.evolution.snapshots import OnlineBatches, Snapshots

    first = plans[0]
    recipe = first.recipe
    if recipe.store:
        if ranks.is_rank_zero:  # one harvests, all read
            aligned_store(first, workspace, run)
        ranks.raise_everywhere(None)
        store = aligned_store(first, workspace, run)
        batches, widths = store_batches(first, store)
        return [Input(kind="stores", id=recipe.store, digest=store.digest)], batches, widths
    snapshots = Snapshots([s for plan in plans for s in plan.sources], cache=first.cache)
    unique = len(first.tokens) * (recipe.ctx - 1)
    batches = OnlineBatches(
        snapshots,
        first.tokens,
        recipe.batch_size,
        seed=recipe.seed,
        group=recipe.group,
        cache=recipe.tokens > 1.1 * unique,
        excluded=first.excluded,
        marked=first.marked,
    )
    return [], batches, snapshots.widths()


def _metadata(plan: EvolutionPlan, config: CrosscoderConfig) -> dict[str, Any]:
    """What the crosscoder's folder says about it."""
    recipe, first = plan.recipe, plan.sources[0]
    return {
        "kind": "crosscoder",
        "model_name": first.model,
        "revision": None,
        "hook_name": first.hook,
        "site": recipe.site,
        "context_size": recipe.ctx,
        "store": recipe.store or None,
        "gate": config.gate,
        "activation": config.activation.kind,
        "preset": recipe.preset or None,
        "refit": recipe.refit,
    }
