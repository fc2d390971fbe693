"""Figures of claims: one claim with its control, and all claims of a paper on one scale.

Sources are the documents ``workbench reproduce`` leaves in ``claims/``.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sae.files import read_json
from sae.strict import StrictConfig
from workbench.export.figures import FigureData, Panel, figure
from workbench.workspace import Item, Workspace

REFERENCES = {"llama-scope": "llamascope", "universality": "universality", "evolution": "evolution"}


class NoOptions(StrictConfig):
    """Options of ``claim`` and ``claims_of_paper``: none."""


def document(item: Item) -> dict[str, Any]:
    """The document of a claim, see :func:`workbench.claims.run.describe`."""
    return read_json(item.path / "finding.json")


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Effect and control (where it was measured) as rows: series, value, low, high, n."""
    rows = []
    for series, key in (("measured", "effect"), ("control", "control_measured")):
        m = found.get(key)
        if m and m.get("value") is not None:
            low, high = (m["value"] if m.get(k) is None else m[k] for k in ("low", "high"))
            rows.append({"series": series, "value": m["value"], "low": low, "high": high, "n": m.get("n"), "unit": m.get("unit", "")})
    return rows


@figure("claim", source="claims", options=NoOptions)
def claim(workspace: Workspace, item: Item, options: NoOptions) -> FigureData:
    """One claim: the effect, the same quantity under the control, and the verdict."""
    found = document(item)
    frame = pd.DataFrame(_rows(found) or [], columns=["series", "value", "low", "high", "n", "unit"])
    unit = next((u for u in frame["unit"] if u), "value") if len(frame) else "value"
    table = frame.assign(verdict=found["verdict"]) if len(frame) else pd.DataFrame([{"verdict": found["verdict"], "why": found["note"]}])
    return FigureData(
        panels=[Panel("points", frame, x="series", y="value", low="low", high="high", y_label=unit)],
        caption=f"{found['statement']} {found['experiment']} Control: {found['control']} Criterion: {found['criterion']} Verdict: {found['verdict']}.",
        table=table,
        n={"observations": found["n"]},
        inputs=[item],
        references=(REFERENCES[found["paper"]],),
        permalink=f"results?claim={item.id}&v={item.version}",
        alt=f"Measured effect and control of {item.id} as points with 95 % intervals.",
    )


@figure("claims_of_paper", source="claims", options=NoOptions)
def claims_of_paper(workspace: Workspace, item: Item, options: NoOptions) -> FigureData:
    """All claims of the paper a claim belongs to, each scaled by the larger of effect and control."""
    paper = document(item)["paper"]
    items = [i for i in workspace.items("claims") if i.manifest.id.startswith(f"{paper}.")]
    rows, verdicts = [], []
    for one in items:
        found = document(one)
        verdicts.append({"claim": found["claim"].partition(".")[2], "verdict": found["verdict"], "n": found["n"]})
        parts = _rows(found)
        scale = max((abs(p[k]) for p in parts for k in ("value", "low", "high")), default=0.0) or 1.0
        name = f"{verdicts[-1]['claim']} ({found['verdict']})"
        rows += [{"claim": name} | p | {k: p[k] / scale for k in ("value", "low", "high")} | {"scale": scale} for p in parts]
    frame = pd.DataFrame(rows, columns=["claim", "series", "value", "low", "high", "n", "unit", "scale"])
    label = "effect, relative to the larger of effect and control"
    return FigureData(
        panels=[
            Panel("points", frame, x="claim", y="value", low="low", high="high", series="series", y_label=label, y_range=(-1.05, 1.05))
        ],
        caption=f"Claims of the paper {paper!r} on the bundled models: effects and controls with 95 % intervals, each claim on its own scale.",
        table=pd.DataFrame(verdicts),
        n={"claims": len(items)},
        inputs=items,
        references=(REFERENCES[paper],),
        permalink=f"results?paper={paper}",
        alt=f"Effects and controls of {len(items)} claims as points with intervals.",
    )
