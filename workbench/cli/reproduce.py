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
    only: Annotated[str | None, typer.Option(help="Run one claim, by its id.")] = None,
    write: Annotated[Path | None, typer.Option(help="Also write the results page to this Markdown file.")] = None,
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
    from sae.files import write_bytes
    from sae.strict import nearest
    from workbench.claims import PAPERS, all_claims
    from workbench.claims.run import markdown, run_all, shown
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

    documents = run_all(claims, Workspace(workspace), seeds=seeds, quick=quick, say=say, done=done)
    if write is not None:
        write_bytes(write, markdown(documents, seeds=seeds, quick=quick).encode())
        say(f"wrote {write}")
    return {"workspace": str(workspace), "seeds": seeds, "quick": quick, "claims": documents}
