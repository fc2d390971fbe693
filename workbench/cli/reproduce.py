"""``workbench reproduce``: the findings of the three papers, with verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, say, verb


@verb
def reproduce(
    paper: Annotated[str, typer.Argument(help="llama-scope, universality, evolution or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Repetitions of every training.", min=1, max=20)] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer tokens per experiment: wider intervals, a tenth of the time.")] = False,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train the small variants of the bundled models (about 25 minutes for all, on a quiet core).")
    ] = False,
    only: Annotated[str | None, typer.Option(help="Run one claim, by its id.")] = None,
    write: Annotated[Path | None, typer.Option(help="Also write the results page to this Markdown file, its figures beside it.")] = None,
    bundles: Annotated[Path | None, typer.Option(help="Also write an export bundle (zip) of every claim into this folder.")] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Re-run the findings of the three papers on the bundled models: effect, interval, control and a verdict each.

    Criteria are fixed beforehand, one small file per claim in `workbench/claims/`. A *not found* is a result, not a failure: the exit code
    is 0 whatever the verdicts. Complete claims are reused; an interrupted run goes on.

    Example: `workbench reproduce universality --quick`
    """
    from sae.errors import UsageError
    from sae.strict import nearest
    from workbench.claims import PAPERS, all_claims
    from workbench.claims.run import run_all, shown, write_bundles, write_page
    from workbench.workspace import Workspace

    if paper not in ("all", *PAPERS):
        raise UsageError(f"paper {paper!r} is not one of the three ({nearest(paper, ['all', *PAPERS])})")
    claims = all_claims(paper)
    if only is not None:
        claims = [c for c in claims if c.id == only]
        if not claims:
            raise UsageError(f"claim {only!r} does not exist ({nearest(only, [c.id for c in all_claims(paper)])})")

    def done(d: dict[str, Any]) -> None:
        say(f"{d['verdict']:>17}  {d['claim']}  {shown(d['effect'])}  control {shown(d['control_measured'])}  n = {d['n']:,}")

    home = Workspace(workspace)
    documents = run_all(claims, home, seeds=seeds, quick=quick, retrain=retrain, say=say, done=done)
    if write is not None:
        say(f"wrote {', '.join(map(str, write_page(write, documents, home, seeds=seeds, quick=quick)))}")
    if bundles is not None:
        say(f"wrote {len(write_bundles(bundles, documents, home))} bundles into {bundles}")
    return {"workspace": str(workspace), "seeds": seeds, "quick": quick, "claims": documents}
