"""``workbench reproduce``: the findings of the three papers, with verdicts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import (
    DEFAULT_WORKSPACE,
    DebugOption,
    JsonOption,
    ReplaceOption,
    WorkspaceOption,
    say,
    terminal_run,
    verb,
)


@verb
def reproduce(
    paper: Annotated[str, typer.Argument(help="llama-scope, universality, evolution or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Repetitions of every training.", min=1, max=20)] = 3,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Fewer rows: wider intervals, about ten minutes on two cores for all."),
    ] = False,
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain",
            help="Also train the small variants of the bundled models: about 75 minutes more on two quiet cores.",
        ),
    ] = False,
    confirmatory: Annotated[
        bool,
        typer.Option(
            "--confirmatory",
            help="Call the results confirmatory; refused where the protocol changed after results existed.",
        ),
    ] = False,
    complete_only: Annotated[
        bool,
        typer.Option(
            "--complete-only", help="Measure nothing: take the claims that are complete, and name those that are not."
        ),
    ] = False,
    only: Annotated[str | None, typer.Option(help="Run one claim, by its id.")] = None,
    workers: Annotated[
        int, typer.Option(help="Processes that share the work; 0 = two where there are two cores.", min=0, max=64)
    ] = 0,
    write: Annotated[
        Path | None,
        typer.Option(
            help="Also write the results page to this Markdown file, its numbers (JSON) and figures beside it."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Compare with results written earlier; exit 1 where a claim differs by more than its intervals."
        ),
    ] = None,
    bundles: Annotated[
        Path | None, typer.Option(help="Also write an export bundle (zip) of every claim into this folder.")
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Re-run the findings of the three papers on the bundled models: effect, interval, control and a verdict each.

    Criteria are fixed beforehand, in the protocol file `workbench/claims/protocol.json`. *Contradicted* is a result,
    not a failure: the exit code is 0 whatever the verdicts. Complete claims are reused; an interrupted run goes on.
    Claims that need models trained for them run with --retrain, or by --only.

    Examples: `workbench reproduce universality --quick`, `workbench reproduce all --quick --against
    docs/RESULTS-quick.md`
    """
    from workbench.claims import all_claims, protocol
    from workbench.claims.agreement import at_the_border, check_size, disagreements, kept_of, read_results
    from workbench.claims.page import shown, write_bundles, write_page
    from workbench.claims.run import document_of
    from workbench.verbs.publishing import reproduce as run
    from workbench.workspace import Workspace

    anew = retrain or only in {c.id for c in all_claims() if c.trained_anew}
    earlier = None if against is None else check_size(against, seeds=seeds, quick=quick, retrain=anew)

    whole = paper == "all" and only is None
    if write is not None:
        kept_of(write, (), seeds=seeds, quick=quick, whole=whole)  # a page that would be lost is refused now, not later

    def done(d: dict[str, Any]) -> None:
        control = shown(d["control_measured"])
        say(f"{d['verdict']:>17}  {d['claim']}  {shown(d['effect'])}  control {control}  n = {d['n']:,}")

    home, begin = Workspace(workspace), time.perf_counter()
    kind = protocol.CONFIRMATORY if confirmatory else protocol.EXPLORATORY
    if confirmatory:
        before = [read_results(p) for p in (write, against) if p is not None and p.with_suffix(".json").is_file()]
        protocol.check_confirmatory(home, before)
    frozen = protocol.frozen()
    say(f"{kind} run under the protocol {frozen['digest'][:12]} of {frozen['date']}")
    items = run(
        home,
        paper,
        seeds=seeds,
        quick=quick,
        retrain=retrain,
        only=only,
        complete_only=complete_only,
        workers=workers,
        done=done,
        replace=replace,
        run=terminal_run(),
    ).all
    documents = [document_of(item) for item in items]
    have = {d["claim"] for d in documents}
    unmeasured = [c.id for c in all_claims() if whole and c.id not in have and (retrain or not c.trained_anew)]
    if unmeasured:
        say(f"not measured: {', '.join(unmeasured)}")
    seconds = time.perf_counter() - begin
    say(f"{len(documents)} claims in {seconds:.0f} s")
    if write is not None:
        pages, kept = write_page(write, documents, seeds=seeds, quick=quick, retrain=retrain, kind=kind, whole=whole)
        if kept:
            say(f"kept on the page, from earlier runs under the same protocol: {kept} claims")
        say(f"wrote {', '.join(map(str, pages))}")
    if bundles is not None:
        say(f"wrote {len(write_bundles(bundles, documents, home))} bundles into {bundles}")
    out = {
        "workspace": str(workspace),
        "seeds": seeds,
        "quick": quick,
        "retrain": retrain,
        "kind": kind,
        "protocol": frozen["digest"],
        "seconds": round(seconds, 1),
        "claims": documents,
    }
    if earlier is not None:
        differ = disagreements(documents, earlier, complete=whole)
        border = at_the_border(documents, earlier)
        for d in border:
            say(f"at the border: {d}")
        for d in differ:
            say(f"differs: {d}")
        say(
            f"{len(documents)} claims held against {against}: {len(differ)} differ{'s' * (len(differ) == 1)} by more"
            " than the intervals"
        )
        told = {k: [{"claim": d.claim, "what": d.what} for d in v] for k, v in (("differ", differ), ("border", border))}
        out |= {**told, "exit_code": 1 if differ else 0}
    return out
