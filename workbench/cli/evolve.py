"""``workbench evolve``: latents over pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, say, verb


@verb
def evolve(
    what: Annotated[
        str, typer.Argument(help="A recipe file, a bundled recipe such as mini-evolve, or a model with snapshots.")
    ] = "mini-evolve",
    site: Annotated[str | None, typer.Option(help="The one site to read, such as L1R (overrides the recipe).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the crosscoder (overrides the recipe).")] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything on the meta device, read one batch, run nothing.")
    ] = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Train a crosscoder over the snapshots of a model and follow its latents: emergence, phases, attribution, with
    their nulls.

    Complete results are reused; an interrupted training goes on where it stopped. Processes that torchrun started train
    together; then the first analyses, and the others wait for it.

    Example: `workbench evolve mini-evolve`, or `workbench evolve mini-mamba --site L2R`
    """
    from sae.parallel import process_mesh
    from workbench.analysis.evolution.plan import EvolveRecipe
    from workbench.analysis.evolution.plan import evolve as run
    from workbench.analysis.evolution.train import train_together
    from workbench.results.evolution import Evolution
    from workbench.workspace import Workspace

    ws = Workspace(workspace)
    with process_mesh() as everyone:
        recipe, command = everyone.run_everywhere(lambda: _recipe(what, EvolveRecipe))
        given: dict[str, Any] = {"seed": seed} if seed is not None else {}
        recipe = recipe.model_copy(update=given | ({} if site is None else {"site": site, "also": ()}))
        if dry_run:
            from workbench.planning.dry_run import dry_evolve, show

            show(built := dry_evolve(recipe, ws, Path(what).parent if Path(what).is_file() else None))
            return built.as_json()
        if everyone.world > 1:
            with process_mesh(recipe.parallel.data, recipe.parallel.latents) as ranks:
                train_together(recipe, ws, ranks, command=command, say=say)
        id = everyone.broadcast(
            everyone.run_everywhere(lambda: run(recipe, ws, command=command, say=say) if everyone.is_rank_zero else "")
        )
    done = Evolution.open(ws.get("evolution", id).path)
    say(f"{id}: {len(done)} latents over {len(done.sources)} sources (version {done.version})")
    statistics = done.statistics
    claims = [] if statistics is None else statistics[["claim", "value", "low", "high", "n", "p", "verdict", "note"]]
    rows = (
        []
        if statistics is None
        else [{k: None if v != v else v for k, v in r.items()} for r in claims.to_dict("records")]
    )  # type: ignore[union-attr]
    for r in rows:
        say(f"  {r['verdict']:>10}  {r['claim']}  ({_shown(r)}n = {r['n']:.0f}){'; ' + r['note'] if r['note'] else ''}")
    return {
        "workspace": str(workspace),
        "evolution": id,
        "version": done.version,
        "numbers": done.manifest.numbers,
        "claims": rows,
    }


def _recipe(what: str, model: Any) -> tuple[Any, str]:
    """The recipe meant: a file or bundled name, or the defaults for a model's name.

    And the command that asks for it again.
    """
    from sae.errors import MissingError, UsageError
    from sae.strict import read_toml
    from workbench.config import find_recipe, read_recipe
    from workbench.models.load import find_folder

    try:
        path = find_recipe(what)
    except MissingError as e:
        if Path(what).suffix == ".toml":
            raise
        if find_folder(what) is None:
            raise MissingError(f"{e}, nor a model at hand") from e
        return model(model=what), f"workbench evolve {what}"
    if path != Path(what) and "architecture" in read_toml(
        path
    ):  # the recipe that a bundled model of this name was trained by
        if find_folder(what) is None:
            raise UsageError(f"{what!r} is a recipe for `workbench pretrain {what}`, and there is no such model yet.")
        return model(model=what), f"workbench evolve {what}"
    return read_recipe(model, what), f"workbench evolve {path.name}"


def _shown(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return ""
    bounds = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['value']:.2f}{bounds}, "
