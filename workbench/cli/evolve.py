"""``workbench evolve``: latents over pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    import pandas as pd


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
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Train a crosscoder over the snapshots of a model and follow its latents: when each emerges, which phases the
    training has, what latents do for a task; each number beside what the same gives by chance.

    Complete results are reused; an interrupted training goes on where it stopped. Processes that torchrun started train
    together; then the first analyses, and the others wait for it.

    Example: `workbench evolve mini-evolve`, or `workbench evolve mini-mamba --site L2R`
    """
    from workbench.results.evolution import Evolution
    from workbench.verbs.analysing import evolve as run

    if dry_run:
        from workbench.planning.dry_run import dry_evolve
        from workbench.verbs.analysing import evolve_recipe
        from workbench.workspace import Workspace

        beside = Path(what).parent if Path(what).is_file() else None
        return show_dry_run(dry_evolve(evolve_recipe(what, site=site, seed=seed), Workspace(workspace), beside))
    item = run(workspace, what, site=site, seed=seed, replace=replace, run=terminal_run())
    done = Evolution.open(item.path)
    say(f"{item.id}: {len(done)} latents over {len(done.sources)} sources (version {done.version})")
    rows = [] if done.statistics is None else _rows(done.statistics)
    for r in rows:
        say(f"  {r['verdict']:>10}  {r['claim']}  ({_shown(r)}n = {r['n']:.0f}){'; ' + r['note'] if r['note'] else ''}")
    return {
        "workspace": str(workspace),
        "evolution": item.id,
        "version": done.version,
        "numbers": done.manifest.numbers,
        "claims": rows,
    }


def _rows(statistics: pd.DataFrame) -> list[dict[str, Any]]:
    """The statistics as plain rows; what was not computed is None."""
    columns = ["claim", "value", "low", "high", "n", "p", "verdict", "note"]
    records: list[dict[str, Any]] = statistics[columns].to_dict("records")  # type: ignore[assignment]
    return [{k: None if v != v else v for k, v in r.items()} for r in records]


def _shown(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return ""
    bounds = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['value']:.2f}{bounds}, "
