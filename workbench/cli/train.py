"""``workbench train``: dictionaries from a store."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import (
    DEFAULT_WORKSPACE,
    DebugOption,
    JsonOption,
    ReplaceOption,
    WorkspaceOption,
    say,
    show_dry_run,
    terminal_run,
    verb,
)


@verb
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled one such as mini-train.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything on the meta device, read one batch, run nothing.")
    ] = False,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Train dictionaries on a store of the workspace: every source × site × expansion × k × seed the recipe names
    (expansion: latents per dimension of what is read; k: how many of them may be on for one token).

    Complete dictionaries are reused; an interrupted run goes on from its last checkpoint, bit for bit on a CPU.

    Several processes train together where torchrun starts them; `[parallel]` in the recipe says how they share the
    work.

    Example: `workbench demo --no-ui && workbench train mini-train`, or `torchrun --nproc-per-node 2 -m workbench train
    mini-train`
    """
    from workbench.verbs.making import train as run

    if dry_run:
        from workbench.config import find_recipe, read_recipe
        from workbench.dictionaries.recipe import TrainRecipe
        from workbench.planning.dry_run import dry_train
        from workbench.workspace import Workspace

        return show_dry_run(
            dry_train(read_recipe(TrainRecipe, recipe), Workspace(workspace), find_recipe(recipe).parent)
        )
    items = run(workspace, recipe, replace=replace, run=terminal_run()).all
    done = [{"id": item.id, "version": item.version, **item.manifest.numbers} for item in items]
    for d in done:
        say(
            f"{d['id']}: explained variance {d['explained_variance']:.3f}, L0 {d['l0']:.1f} (n = {d['n_heldout']:,}"
            f" held-out rows), dead {d['dead_share']:.1%}"
        )
    return {"workspace": str(workspace), "dictionaries": done}
