"""``workbench harvest``: models' activations into a store."""

from __future__ import annotations

import signal
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
def harvest(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled recipe such as mini-harvest.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes that share the work (default: the recipe's).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything on the meta device, read one batch, run nothing.")
    ] = False,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Run models over a corpus and keep the activations of chosen hooks in `stores/<id>`.

    A complete store is reused. An interrupted harvest goes on where it stopped when the same command runs again, and
    the same command may run on several machines at once on a shared folder.

    Example: `workbench harvest mini-harvest`; `workbench plan mini-harvest` says what that costs.
    """
    from workbench.activations import HarvestRecipe, describe_store
    from workbench.activations.write.interrupts import Terminated, on_sigterm
    from workbench.config import read_recipe
    from workbench.verbs.making import harvest as run

    if dry_run:
        from workbench.planning.dry_run import dry_harvest
        from workbench.workspace import Workspace

        return show_dry_run(dry_harvest(read_recipe(HarvestRecipe, recipe), Workspace(workspace)))
    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        item = run(workspace, recipe, workers=workers, replace=replace, run=terminal_run())
    except Terminated:
        say("stopped; run the same command again to go on.")
        raise typer.Exit(143) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    about = describe_store(item.path)
    if not json_output:
        n, hooks, files = about["numbers"], len(about["metadata"]["streams"]), about["numbers"]["shards"]
        say(
            f"{item.path}: {n['rows']:,} rows, {hooks} hook{'s' * (hooks != 1)}, {files} file{'s' * (files != 1)},"
            f" {n['bytes'] / 1e6:,.1f} MB"
        )
    return {
        "id": item.id,
        "store_id": about["metadata"]["store_id"],
        **about["numbers"],
        "sources": about["metadata"]["sources"],
        "hooks": about["metadata"]["hooks"],
    }
