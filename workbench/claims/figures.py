"""Figures of claims: one with its control, those of a paper on one scale, and the verdicts of all as a table.

Sources are the documents ``workbench reproduce`` leaves in ``claims/``.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from pydantic import Field

from sae.errors import CorruptError, MissingError
from sae.files import read_json
from sae.strict import StrictConfig
from workbench.claims.rules import VERDICTS
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.workspace import Item, Workspace

REFERENCE = {
    "llama-scope": "llamascope",
    "universality": "universality",
    "evolution": "evolution",
}  # paper -> its entry
_KEYS = ("claim", "paper", "statement", "verdict", "effect", "control_measured", "n", "paper_number")


class ClaimOptions(StrictConfig):
    """A claim has no options."""


class TableOptions(StrictConfig):
    """Options of ``claims_table``: one paper, or all."""

    paper: str = Field("", description="claims of one paper: llama-scope, universality, evolution; empty = all")


def read_claim(item: Item) -> dict[str, Any]:
    """The document of a complete claim.

    Raises:
        CorruptError: it is no such document.
    """
    document = read_json(item.path / "finding.json")
    if (
        not isinstance(document, dict)
        or any(k not in document for k in _KEYS)
        or not isinstance(document["effect"], dict)
    ):
        raise CorruptError(
            f"{item.path / 'finding.json'} is not the result of a claim. Run `workbench reproduce --only {item.id}`"
            " again."
        )
    if document["verdict"] not in VERDICTS:
        raise CorruptError(
            f"{item.id} was judged {document['verdict']!r} by an earlier version. Run `workbench reproduce --only"
            f" {item.id}` again."
        )
    return document


def comparison(document: dict[str, Any]) -> pd.DataFrame:
    """Effect and control of a claim as rows ``what, value, low, high, n``; what was not measured is left out."""
    rows = []
    for what, m in (("effect", document["effect"]), ("control", document["control_measured"])):
        if m and m.get("value") is not None:
            rows.append(
                {
                    "what": what,
                    "value": m["value"],
                    "low": m.get("low"),
                    "high": m.get("high"),
                    "n": int(m.get("n") or 0),
                }
            )
    frame = pd.DataFrame(rows, columns=["what", "value", "low", "high", "n"])
    return frame.astype({"value": float, "low": float, "high": float})


@figure("claim", source="claims", options=ClaimOptions)
def claim(workspace: Workspace, item: Item, options: ClaimOptions) -> FigureData:
    """One finding of a paper, measured here, beside its control."""
    document = read_claim(item)
    frame = comparison(document)
    if frame.empty:
        raise MissingError(
            f"{item.id}: nothing was measured ({document.get('note') or document['verdict']}), so there is nothing to"
            " draw."
        )
    unit = document["effect"].get("unit") or "effect"
    said = (
        f"{document['statement']} Measured: {document.get('experiment', '')} Criterion: {document.get('criterion', '')}"
    )
    return FigureData(
        panels=[Panel("points", frame, x="what", y="value", low="low", high="high", y_label=unit)],
        explained={unit: "unit of a claim"},
        caption=(
            f"{said} Verdict: {document['verdict']}. Bars are 95 % intervals. The paper: {document['paper_number']}."
        ),
        table=frame,
        n={"observations": int(document["n"])},
        inputs=[item],
        references=tuple(r for r in (REFERENCE.get(document["paper"]),) if r),
        permalink=f"results?c={item.id}&cv={item.version}",
        alt=f"{document['statement']} {document['verdict']}: the effect beside its control.",
    )


@figure("claims_of_paper", source="claims", options=ClaimOptions)
def claims_of_paper(workspace: Workspace, item: Item, options: ClaimOptions) -> FigureData:
    """All claims of the paper a claim belongs to, each scaled by the larger of effect and control."""
    paper = read_claim(item)["paper"]
    items = [i for i in workspace.items("claims") if i.id.startswith(f"{paper}.")]
    frames, verdicts = [], []
    for document in map(read_claim, items):
        short = document["claim"].partition(".")[2]
        verdicts.append({"claim": short, "verdict": document["verdict"], "n": document["n"]})
        part = comparison(document)
        scale = float(part[["value", "low", "high"]].abs().max(axis=None)) if len(part) else 1.0
        scaled = part.assign(**{c: part[c] / (scale or 1.0) for c in ("value", "low", "high")}, scale=scale)
        frames.append(
            scaled.assign(claim=f"{short} ({document['verdict']})", unit=document["effect"].get("unit") or "")
        )
    if not any(map(len, frames)):
        raise MissingError(
            f"none of the {len(items)} claims of {paper!r} here was measured, so there is nothing to draw."
        )
    frame = pd.concat([f for f in frames if len(f)], ignore_index=True)
    label = "effect, relative to the larger of effect and control"
    return FigureData(
        panels=[
            Panel(
                "points",
                frame,
                x="claim",
                y="value",
                low="low",
                high="high",
                series="what",
                y_label=label,
                y_range=(-1.05, 1.05),
            )
        ],
        caption=(
            f"Claims of the paper {paper!r} on the bundled models: effects and controls with 95 % intervals, each claim"
            " on its own scale."
        ),
        table=pd.DataFrame(verdicts),
        n={"claims": len(items)},
        inputs=items,
        references=tuple(r for r in (REFERENCE.get(paper),) if r),
        permalink="results",
        alt=f"Effects and controls of {len(items)} claims as points with intervals.",
    )


@figure("claims_table", source="claims", options=TableOptions, many=True)
def claims_table(workspace: Workspace, item: Item | None, options: TableOptions) -> FigureData:
    """Verdicts of all claims, paper by paper, with every number."""
    items = [i for i in workspace.items("claims") if not options.paper or i.id.startswith(f"{options.paper}.")]
    documents = [read_claim(i) for i in items]
    if not documents:
        which = f"of {options.paper!r} " if options.paper else ""
        raise MissingError(f"{workspace.root} holds no claims {which}yet. `workbench reproduce all` measures them.")
    papers = list(dict.fromkeys(d["paper"] for d in documents))
    counts = pd.DataFrame(
        [
            {"paper": p, "verdict": v, "claims": sum((d["paper"], d["verdict"]) == (p, v) for d in documents)}
            for p in papers
            for v in VERDICTS
        ]
    )
    table = pd.DataFrame([_row(d) for d in documents])
    return FigureData(
        panels=[
            Panel("heat", counts, x="verdict", y="paper", value="claims", x_label="", y_label="", value_label="claims")
        ],
        caption=(
            "Findings of the papers, measured again on the models of this workspace, by verdict. What holds by"
            " construction is listed and no finding."
        ),
        table=table,
        n={"claims": len(documents)},
        inputs=items,
        references=tuple(dict.fromkeys(REFERENCE[p] for p in papers if p in REFERENCE)),
        permalink="results",
        columns={"here": "measured here", "paper_number": "the paper"},
        alt=", ".join(f"{sum(d['verdict'] == v for d in documents)} {v}" for v in VERDICTS),
    )


def _row(document: dict[str, Any]) -> dict[str, Any]:
    effect, control = document["effect"], document["control_measured"] or {}
    return {
        "claim": document["claim"],
        "statement": document["statement"],
        "verdict": document["verdict"],
        "here": _float(effect.get("value")),
        "low": _float(effect.get("low")),
        "high": _float(effect.get("high")),
        "control": _float(control.get("value")),
        "n": int(document["n"]),
        "paper_number": document["paper_number"],
    }


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)
