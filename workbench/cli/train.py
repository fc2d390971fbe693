"""``workbench train``: dictionaries from a store."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, say, verb


@verb
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled one such as mini-train.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything on the meta device, read one batch, run nothing.")
    ] = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Train dictionaries on a store of the workspace: every source × site × expansion × k × seed the recipe names.

    Complete dictionaries are reused; an interrupted run goes on from its last checkpoint, bit for bit on a CPU.

    Several processes train together where torchrun starts them; `[parallel]` in the recipe says how they share the
    work.

    Example: `workbench demo --no-ui && workbench train mini-train`, or `torchrun --nproc-per-node 2 -m workbench train
    mini-train`
    """
    from sae.parallel import process_mesh
    from workbench.config import find_recipe, read_recipe
    from workbench.dictionaries.train import TrainRecipe, train_recipe
    from workbench.workspace import Workspace

    ws = Workspace(workspace)
    if dry_run:
        from workbench.planning.dry_run import dry_train, show

        show(built := dry_train(read_recipe(TrainRecipe, recipe), ws, find_recipe(recipe).parent))
        return built.as_json()
    with process_mesh() as everyone:
        parsed = everyone.run_everywhere(
            lambda: read_recipe(TrainRecipe, recipe)
        )  # a file one machine lacks is told by all
        with process_mesh(parsed.parallel.data, parsed.parallel.latents, device=parsed.device) as ranks:
            ids = train_recipe(parsed, ws, command=f"workbench train {find_recipe(recipe).name}", say=say, ranks=ranks)
    done = [
        {"id": id, "version": ws.get("dictionaries", id).version, **ws.get("dictionaries", id).manifest.numbers}
        for id in ids
    ]
    for d in done:
        say(
            f"{d['id']}: EV {d['explained_variance']:.3f} at L0 {d['l0']:.1f} (n = {d['n_heldout']:,} held-out rows),"
            f" dead {d['dead_share']:.1%}"
        )
    return {"workspace": str(workspace), "dictionaries": done}
