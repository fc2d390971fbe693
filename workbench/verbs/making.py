"""Verbs that make what everything else reads: activation stores and dictionaries."""

from __future__ import annotations

from pathlib import Path

from workbench.activations.harvesting.recipe import HarvestRecipe
from workbench.dictionaries.recipe import TrainRecipe
from workbench.run import Run, opened, recorded
from workbench.workspace import Item, Workspace, all_of, new_id


@recorded("harvest", unrecorded=("workers",))
def harvest(
    workspace: Workspace | str | Path,
    recipe: HarvestRecipe | str | Path,
    *,
    workers: int | None = None,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Run models over a corpus and keep the activations of chosen hooks in ``stores/<id>``.

    Args:
        recipe: a recipe file, a bundled name, or the recipe. workers: processes that share the work (default: the
            recipe's); they change nothing in the result.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        StoreMismatch: a store of this id was made from something else. UserError: see
        :func:`workbench.activations.harvest`.

    Examples:
        >>> store = harvest("workspace", "mini-harvest")
    """
    from workbench.activations import harvest as fill_store
    from workbench.config import as_recipe

    workspace, run = opened(workspace, run, replace_results=replace)
    wanted = as_recipe(HarvestRecipe, recipe, workspace)
    new_id(wanted.id)
    fill_store(wanted, workspace, workers=workers, run=run)
    return workspace.get("stores", wanted.id)


@recorded("train")
def train(
    workspace: Workspace | str | Path,
    recipe: TrainRecipe | str | Path,
    *,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Train every dictionary a recipe names: source x site x expansion x k x seed. Several processes train together
    where torchrun started them.

    Returns:
        The first dictionary; ``.all`` has every one of the recipe, in its order.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        MissingError: the store is not in the workspace. UserError: see :func:`sae.train`.

    Examples:
        >>> for item in train("workspace", "mini-train").all:
        ...     print(item.id, item.manifest.numbers["explained_variance"])
    """
    from sae.parallel import process_mesh
    from workbench.config import as_recipe
    from workbench.dictionaries.train import train_recipe
    from workbench.verbs.suite import evaluate_all, export_summary

    workspace, run = opened(workspace, run, replace_results=replace)
    with process_mesh() as everyone:
        wanted = everyone.run_everywhere(
            lambda: as_recipe(TrainRecipe, recipe, workspace)
        )  # one machine may lack the file
        with process_mesh(wanted.parallel.data, wanted.parallel.latents, device=wanted.device) as ranks:
            ids = train_recipe(wanted, workspace, run=run, ranks=ranks)
        if wanted.evaluate:
            everyone.run_everywhere(
                lambda: evaluate_all(wanted, workspace, ids, run) if everyone.is_rank_zero else None
            )
        if wanted.summary:
            everyone.run_everywhere(lambda: export_summary(wanted, workspace, run) if everyone.is_rank_zero else None)
    return all_of([workspace.get("dictionaries", id) for id in ids])


@recorded("import")
def import_dictionary(
    workspace: Workspace | str | Path,
    reference: str,
    *,
    id: str | None = None,
    library: str | None = None,
    model: str | None = None,
    hook: str | None = None,
    revision: str | None = None,
    store: str | None = None,
    source: str | None = None,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Bring a dictionary of another library into the workspace: raw activations in, raw activations out.

    Args:
        reference: a folder on this machine, or ``REPOSITORY:FOLDER`` of the hub. id: its name here. library: found by
            its files if not given. model, hook, revision: where the files do not say. store, source: of the workspace,
            with activations of that hook.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError, MissingError, CorruptError, UntrustedFile: what the reference or its files get wrong, by name.

    Examples:
        >>> theirs = import_dictionary("workspace", "downloads/trainer_0", id="theirs", model="mini-pythia")
    """
    from workbench.dictionaries import importing

    workspace, run = opened(workspace, run, replace_results=replace)
    return importing.import_dictionary(
        workspace,
        reference,
        id=id,
        library=library,
        model=model,
        hook=hook,
        revision=revision,
        store=store,
        source=source,
        run=run,
    )
