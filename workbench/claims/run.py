"""Running claims: each is measured once, written as a complete result, and judged by its fixed criterion."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae import system
from sae.errors import UserError
from sae.files import read_json, sha256_json, write_bytes, write_json
from workbench.claims.base import NOT_TESTABLE, VERDICTS, Claim, Finding, untestable, verdict
from workbench.claims.lab import Lab
from workbench.claims.rows import ROWS
from workbench.results.reuse import reusable
from workbench.run import Run
from workbench.workspace import Item, Workspace


def recipe_of(claim: Claim, lab: Lab) -> dict[str, Any]:
    """What decides a claim's result besides the data: its own file, seeds and size."""
    module = inspect.getmodule(claim.measure)
    source = inspect.getsource(module) if module is not None else ""
    return {"claim": sha256_json([claim.id, source])[:16], "seeds": lab.seeds, "quick": lab.quick}


def complete_claim(claim: Claim, lab: Lab) -> dict[str, Any] | None:
    """The document of a claim that the workspace holds already, measured in the same way; None where it must be
    measured.
    """
    if not lab.workspace.complete("claims", claim.id):
        return None
    if lab.workspace.get("claims", claim.id).manifest.numbers["verdict"] == NOT_TESTABLE:
        return None  # what was missing may have come
    words = {"claim": "how the claim is measured"}
    quiet = Run(replace=lab.replace)
    have = reusable(lab.workspace, "claims", claim.id, recipe=recipe_of(claim, lab), run=quiet, words=words)
    return None if have is None else document_of(have)


def run_claim(claim: Claim, lab: Lab) -> dict[str, Any]:
    """Measure one claim (or reuse its complete result) and return its document."""
    if (have := complete_claim(claim, lab)) is not None:
        return have
    lab.say(f"{claim.id}: {claim.statement}")
    try:
        finding = claim.measure(lab)
    except UserError as e:  # what the bundled models or this workspace cannot carry is a result, and says why
        finding = untestable(str(e))
    document = describe(claim, finding)
    numbers = {"verdict": document["verdict"], "n": document["n"], "effect": document["effect"]}
    with lab.workspace.create(
        "claims",
        claim.id,
        replace=True,
        command=f"workbench reproduce --only {claim.id}",
        recipe=recipe_of(claim, lab),
        numbers=numbers,
    ) as folder:
        write_json(folder / "finding.json", document)
        if finding.table is not None:
            finding.table.to_parquet(folder / "table.parquet", index=False)
    return document_of(lab.workspace.get("claims", claim.id))


def describe(claim: Claim, finding: Finding) -> dict[str, Any]:
    """The document of one claim: its text, what was measured, the control, and the verdict."""
    found = finding.as_dict()
    return {
        "claim": claim.id,
        "paper": claim.paper,
        "section": claim.section,
        "statement": claim.statement,
        "paper_number": claim.paper_number,
        "experiment": claim.experiment,
        "criterion": claim.criterion,
        "control": claim.control,
        "control_measured": found["control"],
        "effect": found["effect"],
        "n": finding.effect.n,
        "verdict": verdict(claim, finding),
        "note": found["untestable"] or found["note"],
    }


def document_of(item: Item) -> dict[str, Any]:
    """The document of a complete claim, with its data version."""
    return {**read_json(item.path / "finding.json"), "version": item.version}


def run_all(
    claims: Sequence[Claim],
    workspace: Workspace,
    *,
    seeds: int,
    quick: bool,
    retrain: bool = False,
    replace: bool = False,
    workers: int = 1,
    say: Callable[[str], None],
    done: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Run claims; ``done`` is told each document as it is complete. Interrupted runs go on where they stopped.

    Args:
        workers: processes that share the work, each with its part of the cores; more than one needs claims of the
            registry. With one everything happens here, in the order of the claims.

    Returns:
        The documents, in the order of the claims.

    Raises:
        MismatchError: a claim is there that was measured otherwise, and ``replace`` is false.
    """
    lab = Lab(workspace, seeds=seeds, quick=quick, retrain=retrain, replace=replace, say=say)
    documents: dict[str, dict[str, Any]] = {}

    def report(document: dict[str, Any]) -> None:
        documents[document["claim"]] = document
        done(document)

    missing = []
    for claim in claims:
        if (have := complete_claim(claim, lab)) is not None:
            report(have)
        else:
            missing.append(claim)
    if workers > 1 and len(missing) > 1:
        from workbench.claims.pool import run_tasks, tasks_of

        lab.threads = max(1, system.cores() // workers)
        run_tasks(tasks_of(missing, retrain=retrain), lab, workers, report)
    else:
        for claim in missing:
            report(run_claim(claim, lab))
    return [documents[c.id] for c in claims]


def shown(m: dict[str, Any] | None) -> str:
    """``0.123 [0.100, 0.150]`` of a measured value."""
    if m is None or m.get("value") is None:
        return "–"
    text = f"{m['value']:.3g}"
    return text if m.get("low") is None else f"{text} [{m['low']:.3g}, {m['high']:.3g}]"


def markdown(
    documents: Sequence[dict[str, Any]],
    *,
    seeds: int,
    quick: bool,
    retrain: bool = False,
    page: str = "docs/RESULTS.md",
    pictures: Mapping[str, str] | None = None,
) -> str:
    """The results page: a summary, a table per paper, and every claim with its control and criterion.

    ``page``: where it will lie, as its own text says; ``pictures``: paper -> path of its figure, relative to the page.
    """
    counts = {v: sum(d["verdict"] == v for d in documents) for v in VERDICTS}
    size = f"{' --quick' if quick else ''}{' --retrain' if retrain else ''}"
    lines = [
        "# Three papers in miniature",
        "",
        (
            f"Made by `workbench reproduce all --seeds {seeds}{size} --write {page}` on the bundled models. Criteria"
            " are fixed in `workbench/claims/` before a run. Intervals are 95 %. The numbers are in the JSON file"
            f" beside this page; `workbench reproduce all --seeds {seeds}{size} --against {page}` measures them again"
            " and ends with 1 where one differs by more than its interval."
        ),
        "",
        (
            f"{len(documents)} claims: {counts['found']} found, {counts['not found']} not found,"
            f" {counts['not testable here']} not testable here."
        ),
    ]
    for paper in dict.fromkeys(d["paper"] for d in documents):
        mine = [d for d in documents if d["paper"] == paper]
        lines += [
            "",
            f"## {paper}",
            "",
            "| claim | verdict | measured here | control | n | the paper |",
            "|---|---|---|---|---|---|",
        ]
        for d in mine:
            unit = (d["effect"] or {}).get("unit") or ""
            row = (
                d["statement"],
                f"**{d['verdict']}**",
                f"{shown(d['effect'])} {unit}",
                shown(d["control_measured"]),
                f"{d['n']:,}",
                d["paper_number"],
            )
            lines.append("| " + " | ".join(str(c).replace("|", "\\|").strip() for c in row) + " |")
        lines += ["", *_rows_of(paper, {d["claim"]: d["verdict"] for d in mine}), ""]
        if pictures and paper in pictures:
            lines += [f"![Effects and controls of the claims of {paper}]({pictures[paper]})", ""]
        for d in mine:
            lines += [
                f"**{d['claim']}** ({d['section']}). {d['experiment']} Control: {d['control']} Criterion:"
                f" {d['criterion']} {d['note']}".rstrip(),
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def _rows_of(paper: str, verdicts: Mapping[str, str]) -> list[str]:
    """The paper's findings and open questions as a table, each with the verdicts of its claims."""
    lines = ["| finding or open question | claims |", "|---|---|"]
    for row, names in ROWS.get(paper, {}).items():
        shown = [f"{n}: {verdicts[f'{paper}.{n}']}" for n in names if f"{paper}.{n}" in verdicts]
        if shown:
            lines.append(f"| {row} | {'; '.join(shown)} |")
    return lines if len(lines) > 2 else []


def write_page(
    path: Path,
    documents: Sequence[dict[str, Any]],
    workspace: Workspace,
    *,
    seeds: int,
    quick: bool,
    retrain: bool = False,
) -> list[Path]:
    """Write the results page and, beside it, its numbers as JSON and one SVG per paper in ``<name>-figures/``; returns
    all paths.
    """
    from workbench.claims.agreement import results_document
    from workbench.exporting.figures import build
    from workbench.exporting.render import render
    from workbench.exporting.spec import FigureSpec, Style

    written, pictures = [], {}
    for paper in dict.fromkeys(d["paper"] for d in documents):
        if all(d["effect"].get("value") is None for d in documents if d["paper"] == paper):
            continue  # nothing was measured: there is nothing to draw
        first = next(d["claim"] for d in documents if d["paper"] == paper)
        spec = FigureSpec(figure="claims_of_paper", source=f"claims/{first}", style=Style(width="double"))
        target = path.parent / f"{path.stem.lower()}-figures" / f"{paper}.svg"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, render(build(spec, workspace), spec.style, formats=("svg",))["svg"])
        pictures[paper] = f"{target.parent.name}/{target.name}"
        written.append(target)
    name = path.name if path.is_absolute() else path.as_posix()
    write_bytes(
        path, markdown(documents, seeds=seeds, quick=quick, retrain=retrain, page=name, pictures=pictures).encode()
    )
    numbers = path.with_suffix(".json")
    write_json(numbers, results_document(documents, seeds=seeds, quick=quick, retrain=retrain))
    return [path, numbers, *written]


def write_bundles(folder: Path, documents: Sequence[dict[str, Any]], workspace: Workspace) -> list[Path]:
    """One export bundle (zip) per measured claim into ``folder``; returns their paths."""
    from workbench.exporting.bundles import bundle
    from workbench.exporting.spec import FigureSpec

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for d in documents:
        if d["effect"].get("value") is not None:
            made = bundle(FigureSpec(figure="claim", source=f"claims/{d['claim']}"), workspace)
            written.append(folder / f"{d['claim']}.zip")
            write_bytes(written[-1], made.zip)
    return written
