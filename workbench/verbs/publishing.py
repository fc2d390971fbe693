"""Verbs for papers: the findings of three papers measured again, and any figure as a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae import system
from sae.errors import CorruptError, MissingError, UsageError
from sae.strict import nearest
from workbench.exporting.spec import FigureSpec
from workbench.run import Run, opened, recorded
from workbench.workspace import Item, Workspace, all_of


@recorded("reproduce", unrecorded=("workers", "done", "complete_only"))
def reproduce(
    workspace: Workspace | str | Path,
    paper: str = "all",
    *,
    seeds: int = 3,
    quick: bool = False,
    retrain: bool = False,
    only: str | None = None,
    complete_only: bool = False,
    workers: int = 0,
    done: Callable[[dict[str, Any]], None] | None = None,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Re-run the findings of the three papers on the bundled models: effect, interval, control and a verdict each.

    Args:
        paper: ``llama-scope``, ``universality``, ``evolution`` or ``all``. seeds: repetitions of every training. quick:
            fewer tokens per experiment. retrain: also train variants of the bundled models and test the claims that
            need them. only: one claim, by its id. complete_only: measure nothing, take what is complete. workers:
            processes that share the work; 0 = two where there are two cores. done: called with the document of every
            claim as it is judged.

    Returns:
        The first claim; ``.all`` has every one.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError: no such paper or claim. MissingError: complete_only, and nothing is.

    Examples:
        >>> for claim in reproduce("workspace", "universality", quick=True).all:
        ...     print(claim.id, claim.manifest.numbers["verdict"])
    """
    from workbench.claims import PAPERS, all_claims
    from workbench.claims.lab import Lab
    from workbench.claims.run import complete_claim, run_all

    workspace, run = opened(workspace, run, replace_results=replace)
    if paper not in ("all", *PAPERS):
        raise UsageError(f"paper {paper!r} is not one of the three ({nearest(paper, ['all', *PAPERS])})")
    claims = [c for c in all_claims(paper) if retrain or only == c.id or not c.trained_anew]
    if only is not None:
        claims = [c for c in all_claims(paper) if c.id == only]
        if not claims:
            raise UsageError(f"claim {only!r} does not exist ({nearest(only, [c.id for c in all_claims(paper)])})")
    if complete_only:
        lab = Lab(workspace, seeds=seeds, quick=quick, retrain=retrain)
        claims = [c for c in claims if complete_claim(c, lab) is not None]
        if not claims:
            raise MissingError(
                f"{workspace.root} holds no complete claim of this size. `workbench reproduce` makes them."
            )
    run_all(
        claims,
        workspace,
        seeds=seeds,
        quick=quick,
        retrain=retrain,
        replace=run.replace,
        workers=workers or min(2, system.cores()),
        say=run.say,
        done=done or (lambda document: None),
    )
    return all_of([workspace.get("claims", c.id) for c in claims])


@recorded("export", unrecorded=("expect",))
def export(
    workspace: Workspace | str | Path,
    spec: FigureSpec | str | Path,
    *,
    source: str = "",
    set: Mapping[str, Any] | None = None,
    expect: str = "",
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Write a figure as a bundle: PDF, SVG, PNG, CSV, Parquet, LaTeX table, BibTeX, caption, provenance, reproduce.sh;
    or a document (``latents_page``, ``site``, ``neuronpedia``).

    Args:
        spec: a .toml or .json file, a bundled name, the name of a figure, or the spec. source: the result to show, as
            ``kind/id``; wins over the spec's. set: options of the figure. expect: SHA-256 the data must have.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError, ConfigError: an unknown figure, option or source. MissingError: the result is not in the workspace.
            CorruptError: the data are not those expected.

    Examples:
        >>> export("workspace", "mppc-distribution").path
    """
    from workbench.exporting.bundles import bundle, write_bundle
    from workbench.exporting.reading import read_spec

    workspace, run = opened(workspace, run, replace_results=replace)
    wanted = spec if isinstance(spec, FigureSpec) else read_spec(spec)
    changes: dict[str, Any] = {"source": source} if source else {}
    if set:
        changes["options"] = {**wanted.options, **set}
    made = bundle(type(wanted).model_validate({**wanted.model_dump(), **changes}), workspace)
    if expect and made.data_sha256 != expect:
        raise CorruptError(
            f"the data of {made.name} have SHA-256 {made.data_sha256}, expected {expect}: the results in"
            f" {workspace.root} are not the same."
        )
    return write_bundle(made, workspace, run=run)
