"""From a store and a recipe to finished dictionaries.

All dictionaries of one hook are trained together on one pass over its rows. A dictionary folder is complete when its
``manifest.json`` exists; an interrupted one keeps its checkpoints and goes on where it stopped.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import ConfigError, UsageError
from workbench.dictionaries.publish import publish, work_folder
from workbench.dictionaries.recipe import Job, TrainRecipe, content_of, jobs_of, recorded_content
from workbench.provenance import Input
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run, command_of
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from sae import SAE
    from sae.log import Logger
    from sae.parallel import Ranks
    from workbench.activations import ActivationStore
    from workbench.activations.read.batches import Batches

OTHERWISE = "or give the recipe a suffix, which ends its ids"
WANDB_PROJECT = "interpretability-workbench"
DEAD_ROWS = 100_000  # a latent that fires on none of this many rows counts as dead (Llama Scope §4.4)


def train_recipe(
    recipe: TrainRecipe,
    workspace: Workspace,
    *,
    run: Run = QUIET,
    ranks: Ranks | None = None,
) -> list[str]:
    """Train every dictionary of a recipe that is not complete yet; returns all their ids. What the recipe wants done
    with them afterwards is up to the caller.

    Args:
        ranks: the processes that train together, each of which calls this; None where there is one.

    Raises:
        MissingError: the store is not in the workspace. MismatchError: a dictionary of one of these ids is there, or
            was begun, from another recipe or store. UserError: see :func:`sae.train`.
    """
    from sae.devices import arithmetic, check_device
    from sae.parallel import SINGLE_PROCESS
    from workbench.activations import ActivationStore

    ranks = ranks or SINGLE_PROCESS
    if recipe.harvest and not workspace.complete("stores", recipe.store):
        check_device(recipe.device)  # before a harvest, which takes longest
    if recipe.harvest:
        ranks.run_everywhere(
            lambda: (
                _harvest(recipe, workspace, run)
                if ranks.is_rank_zero and not workspace.complete("stores", recipe.store)
                else None
            )
        )
    store = ActivationStore.open(workspace.get("stores", recipe.store).path)
    jobs = jobs_of(recipe, store)
    folders = ranks.broadcast(
        ranks.run_everywhere(lambda: _folders(recipe, workspace, store, jobs, run) if ranks.is_rank_zero else None)
    )
    groups: dict[tuple[str, tuple[str, ...], Path], list[Job]] = {}
    for job in jobs:
        if (folder := folders[job.id]) is not None:
            groups.setdefault((job.source, job.hooks, folder.parent), []).append(job)
    for (_, _, parent), todo in groups.items():
        if recipe.device == "cpu":
            check_memory(todo, ranks.latents)
        how = arithmetic(todo[0].config, recipe.device)
        run.say(f"training {', '.join(j.id for j in todo)}{how}")
        _train_group(recipe, workspace, store, todo, parent, run, ranks)
    return [job.id for job in jobs]


def _folders(
    recipe: TrainRecipe, workspace: Workspace, store: ActivationStore, jobs: list[Job], run: Run
) -> dict[str, Path | None]:
    """Where each dictionary of a recipe is trained; None for those that are there already. All are looked at before any
    is trained.

    Raises:
        MismatchError: one exists, or was begun, and is not what the recipe asks for. UsageError, MissingError,
            ConfigError: the device is not there, or cannot do what the recipe asks of it.
    """
    from sae.devices import check, check_device
    from sae.loop import contract

    inputs = [Input(kind="stores", id=recipe.store, digest=store.digest)]
    found: dict[str, Path | None] = {}
    for job in jobs:
        have = reusable(
            workspace,
            "dictionaries",
            job.id,
            recipe=content_of(recipe, job),
            inputs=inputs,
            run=run,
            recorded=lambda m, job=job: recorded_content(m, job, store),  # type: ignore[misc]
            otherwise=OTHERWISE,
        )
        if have is None:
            check_device(recipe.device)
            check(job.config, recipe.device)
        own = contract(job.config, recipe.steps, _batches(recipe, store, job))
        found[job.id] = None if have is not None else work_folder(workspace, job.id, own, run, otherwise=OTHERWISE)
    return found


def _batches(recipe: TrainRecipe, store: ActivationStore, job: Job) -> Batches:
    return store.batches(list(job.hooks), recipe.batch_size, seed=recipe.data_seed, source=job.source, split="train")


def check_memory(configs_at_once: list[Job], parts: int = 1) -> None:
    """Refuse dictionaries that are trained together and cannot be held: weights, gradients and moments against this
    machine's memory.

    Args:
        parts: processes that share the latents.

    Raises:
        UsageError: they need more than there is; the message says how much.
    """
    import psutil

    have = psutil.virtual_memory().total
    configs = [job.config for job in configs_at_once]
    need = sum(
        4 * (8 if c.dtype == "float64" else 4) * c.d_sae * (c.d_in + (getattr(c, "d_out", 0) or c.d_in)) // parts
        for c in configs
    )
    if need > have:
        raise UsageError(
            f"{', '.join(job.id for job in configs_at_once)}: weights, gradients and moments need {need / 1e9:,.0f} GB,"
            f" this machine has {have / 1e9:,.0f} GB. Choose smaller expansions; `workbench plan RECIPE` says what one"
            " needs."
        )


def _harvest(recipe: TrainRecipe, workspace: Workspace, run: Run) -> None:
    """Make the recipe's store."""
    from workbench.activations import HarvestRecipe, harvest
    from workbench.config import read_recipe

    plan = read_recipe(HarvestRecipe, recipe.harvest)
    if plan.id != recipe.store:
        raise ConfigError(
            f"harvest recipe {recipe.harvest!r} makes the store {plan.id!r}, the recipe trains on {recipe.store!r}."
            " Name one."
        )
    run.say(f"harvesting {plan.id}")
    harvest(plan, workspace, run=replace(run, command=command_of("harvest", [recipe.harvest], {}, {})))


def _train_group(
    recipe: TrainRecipe,
    workspace: Workspace,
    store: ActivationStore,
    todo: list[Job],
    parent: Path,
    run: Run,
    ranks: Ranks,
) -> None:
    """Train the dictionaries of one site on one pass over its rows into folders of ``parent``, measure them, and write
    their manifests last.
    """
    import sae as sae_room

    source, hooks = todo[0].source, todo[0].hooks
    about = store.source(source)
    named = [store.spec.stream(source, hook).at for hook in hooks]
    metadata = {
        "model_name": about.model,
        "revision": about.revision,
        "hook_name": named[0],
        **({"hook_name_out": named[1]} if len(named) == 2 else {}),
        "site": todo[0].site,
        "store": recipe.store,
        "source": source,
        "context_size": store.ctx,
    }
    folders = {job.id: parent / job.id for job in todo}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    made = sae_room.train_many(
        {job.id: job.config for job in todo},
        _batches(recipe, store, todo[0]),
        total_steps=recipe.steps,
        out=parent,
        resume=True,
        device=recipe.device,
        metadata=metadata | {job.id: {"activation": job.config.activation.kind} for job in todo},
        loggers=_loggers(recipe, workspace, source, todo[0].site) if ranks.is_rank_zero else (),
        ranks=ranks,
    )

    def finish(job: Job) -> None:
        """Measure one dictionary and complete its folder."""
        publish(
            workspace,
            folders[job.id],
            job.id,
            recipe=recipe,
            inputs=[Input(kind="stores", id=recipe.store, digest=store.digest)],
            numbers=measure(made[job.id], store, list(hooks), source)
            | {
                "d_in": job.config.d_in,
                "d_sae": job.config.d_sae,
                "k": job.config.k,
                "steps": recipe.steps,
                "rate": job.config.rate(recipe.steps),
            },
            metadata=metadata
            | {
                "kind": made[job.id].kind,
                "seed": job.config.seed,
                "activation": job.config.activation.kind,
                "settings": job.config.model_dump(mode="json"),  # presets and defaults may mean others one day
            },
            run=run,
        )

    for job in todo:
        ranks.run_everywhere(lambda job=job: finish(job) if ranks.is_rank_zero else None)  # type: ignore[misc]


def _loggers(recipe: TrainRecipe, workspace: Workspace, source: str, site: str) -> tuple[Logger, ...]:
    """Where the recipe wants every logged step sent, beside ``metrics.parquet``; one run for each site of a store.

    Raises:
        MissingError: the package of one of them is not installed.
    """
    from sae.log import TensorBoardLogger, WandbLogger

    name = f"{recipe.store}.{source}.{site}{f'-{recipe.suffix}' if recipe.suffix else ''}"
    made: list[Logger] = []
    for kind in dict.fromkeys(recipe.log_to):
        if kind == "tensorboard":
            made.append(TensorBoardLogger(workspace.root / "logs" / name))
        else:
            folder = workspace.root / "logs"
            folder.mkdir(exist_ok=True)
            made.append(WandbLogger(WANDB_PROJECT, name=name, dir=str(folder)))
    return tuple(made)


def measure(
    dictionary: SAE, store: ActivationStore, hook: str | list[str], source: str, *, batch_size: int = 4096
) -> dict[str, float | int]:
    """Held-out explained variance (centred) over all rows and without massive ones (see :mod:`sae.populations`), L0
    over all rows, and the share of latents that fire on none of 100,000 rows.

    Every figure comes with the number of rows it rests on.
    """
    from sae import evaluate
    from sae.populations import populations

    def rows() -> Any:
        return store.batches(hook, batch_size, seed=0, source=source, split="heldout", epochs=1)

    heldout, found = evaluate(dictionary, rows()), populations(rows())
    usual = evaluate(dictionary, found.inliers(rows())) if found.n_massive else heldout
    n_batches = -(-min(DEAD_ROWS, len(store)) // batch_size)
    firing = evaluate(
        dictionary,
        itertools.islice(iter(store.batches(hook, batch_size, seed=1, source=source, split="train")), n_batches),
    )
    return {
        "explained_variance": round(heldout.ev, 6),
        "l0": round(heldout.l0, 4),
        "n_heldout": heldout.n,
        "explained_variance_inliers": round(usual.ev, 6),
        "n_inliers": usual.n,
        "massive_share": round(found.n_massive / found.n, 6),
        "massive_square_share": round(found.square_share, 6),
        "dead_share": round(firing.dead, 6),
        "n_dead_rows": firing.n,
    }
