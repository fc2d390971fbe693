"""The results page, its numbers and figures, and a bundle per claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sae.files import write_bytes, write_json
from workbench.claims import all_claims, protocol
from workbench.claims.agreement import kept_of, results_document
from workbench.claims.rows import ROWS
from workbench.claims.rules import BY_CONSTRUCTION, MEANS, NOT_TESTABLE, SUPPORTED, VERDICTS, holm
from workbench.workspace import Workspace


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
    kind: str = protocol.EXPLORATORY,
    unmeasured: Sequence[str] = (),
    page: str = "docs/RESULTS.md",
    pictures: Mapping[str, str] | None = None,
) -> str:
    """The results page: a summary, a table per paper, and every claim with all that its verdict rests on.

    ``page``: where it will lie, as its own text says; ``pictures``: paper -> path of its figure, relative to the page.
    """
    counts = {v: sum(d["verdict"] == v for d in documents) for v in VERDICTS}
    size = f"{' --quick' if quick else ''}{' --retrain' if retrain else ''}"
    adjusted = holm_by_paper(documents)
    held = sum(d["verdict"] == SUPPORTED and adjusted.get(d["claim"], 1.0) <= 0.05 for d in documents)
    frozen = protocol.frozen()
    lines = [
        "# Three papers in miniature",
        "",
        (
            f"Made by `workbench reproduce all --seeds {seeds}{size} --write {page}` on the bundled models;"
            f" `workbench reproduce all --seeds {seeds}{size} --against {page}` measures the numbers"
            f" again, which lie in"
            " the JSON file beside this page, and ends with 1 where one differs by more than its interval."
        ),
        "",
        (
            f"{len(documents) - counts[BY_CONSTRUCTION]} claims tested: "
            + ", ".join(f"{counts[v]} {v}" for v in VERDICTS if v != BY_CONSTRUCTION)
            + f". {held} of the {counts[SUPPORTED]} supported keep p <= .05 after Holm's correction over their paper."
            + f" {counts[BY_CONSTRUCTION]} more hold {BY_CONSTRUCTION} and count for nothing."
        ),
        "",
        (
            f"{kind.capitalize()} run under the protocol `{frozen['digest'][:12]}` of {frozen['date']}"
            " (`workbench/claims/protocol.json`). Intervals are 95 %: Student's t over independent"
            " units, or a bootstrap"
            " over prompts. n counts the units named beside it. p is one-sided, of the bound and of"
            " the control together;"
            " three units alone cannot give an exact p below .125, so p at n = 3 leans on t. Claims about training are"
            " about one training run, and crosscoder seeds are not runs."
        ),
        "",
        "| verdict | it means |",
        "|---|---|",
        *[f"| {v} | {MEANS[v]} |" for v in VERDICTS],
    ]
    for paper in dict.fromkeys(d["paper"] for d in documents):
        mine = [d for d in documents if d["paper"] == paper]
        lines += ["", f"## {paper}", ""]
        lines += [
            "| claim | verdict | measured here | control | n | p (Holm) | the paper |",
            "|---|---|---|---|---|---|---|",
        ]
        for d in mine:
            unit = (d["effect"] or {}).get("unit") or ""
            p = "–" if d.get("p") is None else f"{d['p']:.2g} ({adjusted[d['claim']]:.2g})"
            row = (
                d["statement"],
                f"**{d['verdict']}**",
                f"{shown(d['effect'])} {unit}",
                shown(d["control_measured"]),
                f"{d['n']:,} × {d.get('unit', '')}",
                p,
                d["paper_number"],
            )
            lines.append("| " + " | ".join(str(c).replace("|", "\\|").strip() for c in row) + " |")
        lines += ["", *_rows_of(paper, {d["claim"]: d["verdict"] for d in mine}), ""]
        if pictures and paper in pictures:
            lines += [f"![Effects and controls of the claims of {paper}]({pictures[paper]})", ""]
        for d in mine:
            change = f" What would change it: {d['would_change']}" if d.get("would_change") else ""
            lines += [
                (
                    f"**{d['claim']}** ({d['section']}). *{d['statement']}* Measure: {d['experiment']} Null:"
                    f" {d['control']} Unit: {d.get('unit', '')}. Criterion: {d['criterion']} {d['note']}{change}"
                ).rstrip(),
                "",
            ]
    if unmeasured:
        lines += ["## Not measured in this run", ""]
        lines += ["The same command goes on with these where it stopped: " + ", ".join(unmeasured) + ".", ""]
    if changes := frozen["changes"]:
        lines += [
            "## Verdicts that changed",
            "",
            "| claim | before | now, at full size | since | commit | why |",
            "|---|---|---|---|---|---|",
        ]
        for c in changes:
            told = (c["claim"], c["before"], c["after"], c["since"], c["commit"], c["why"])
            lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines).rstrip() + "\n"


def holm_by_paper(documents: Sequence[dict[str, Any]]) -> dict[str, float]:
    """claim -> p after Holm's correction over the tested claims of its paper."""
    out: dict[str, float] = {}
    for paper in dict.fromkeys(d["paper"] for d in documents):
        tested = [d for d in documents if d["paper"] == paper and d["verdict"] not in (BY_CONSTRUCTION, NOT_TESTABLE)]
        out |= holm({d["claim"]: float("nan") if d.get("p") is None else float(d["p"]) for d in tested})
    return out


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
    *,
    seeds: int,
    quick: bool,
    retrain: bool = False,
    kind: str = protocol.EXPLORATORY,
    whole: bool = True,
) -> tuple[list[Path], int]:
    """Write the results page and, beside it, its numbers as JSON and one SVG per paper in ``<name>-figures/``.

    Claims of a page that is there stay on it as :func:`~workbench.claims.agreement.kept_of` says.

    Args:
        whole: ``documents`` come from a run of all claims; those it lacks are then listed as not measured.

    Returns:
        All paths, and how many claims were kept.
    """
    earlier = kept_of(path, {d["claim"] for d in documents}, seeds=seeds, quick=quick, whole=whole)
    claims = {c.id: c for c in all_claims()}
    kept = [c for c in earlier["claims"] if c["claim"] in claims]
    if kept and earlier["kind"] != kind:
        kind = protocol.EXPLORATORY  # a page is what its weakest part is
    if kept:
        order = {name: i for i, name in enumerate(claims)}
        documents = sorted([*documents, *kept], key=lambda d: order[d["claim"]])
    on_it = {d["claim"] for d in documents}
    retrain = retrain or any(c in claims and claims[c].trained_anew for c in on_it)
    unmeasured = [
        i for i, c in claims.items() if i not in on_it and (whole or kept) and (retrain or not c.trained_anew)
    ]
    about: dict[str, Any] = {"seeds": seeds, "quick": quick, "retrain": retrain, "kind": kind, "unmeasured": unmeasured}
    pictures = _pictures(path, documents)
    name = path.name if path.is_absolute() else path.as_posix()
    relative = {paper: f"{p.parent.name}/{p.name}" for paper, p in pictures.items()}
    write_bytes(path, markdown(documents, **about, page=name, pictures=relative).encode())
    numbers = path.with_suffix(".json")
    write_json(numbers, results_document(documents, **about))
    return [path, numbers, *pictures.values()], len(kept)


def _pictures(path: Path, documents: Sequence[dict[str, Any]]) -> dict[str, Path]:
    """Draw the claims of every paper that has a measured one beside the page at ``path``; paper -> SVG.

    They are drawn from what stands on the page, wherever it was measured.
    """
    from workbench.exporting.figures import build
    from workbench.exporting.render import render
    from workbench.exporting.spec import FigureSpec, Style

    made: dict[str, Path] = {}
    with TemporaryDirectory() as folder:
        workspace = Workspace(folder)
        for d in documents:
            with workspace.create("claims", d["claim"], command=f"workbench reproduce --only {d['claim']}") as target:
                write_json(target / "finding.json", d)
        for paper in dict.fromkeys(d["paper"] for d in documents if d["effect"].get("value") is not None):
            first = next(d["claim"] for d in documents if d["paper"] == paper)
            spec = FigureSpec(figure="claims_of_paper", source=f"claims/{first}", style=Style(width="double"))
            target = path.parent / f"{path.stem.lower()}-figures" / f"{paper}.svg"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, render(build(spec, workspace), spec.style, formats=("svg",))["svg"])
            made[paper] = target
    return made


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
