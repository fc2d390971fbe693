"""Claims for the pages: opened once, and each drawn as a row with its verdict, numbers and a small chart."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import streamlit as st

from workbench.claims.figures import REFERENCE, comparison, read_claim
from workbench.claims.rules import BY_CONSTRUCTION, CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE, SUPPORTED
from workbench.exporting.references import ENTRIES
from workbench.markup.tags import div, span
from workbench.markup.tokens import escape, number
from workbench.workspace import Item

PAPERS = tuple(REFERENCE)
SIGNS = {
    SUPPORTED: ("good", "✓"),
    CONTRADICTED: ("bad", "✕"),
    INCONCLUSIVE: ("open", "~"),
    BY_CONSTRUCTION: ("open", "="),
    NOT_TESTABLE: ("open", "○"),
}


@st.cache_resource(show_spinner=False, max_entries=400)
def open_claim(folder: str, version: str) -> dict[str, Any]:
    """The document of a claim, kept; ``version`` makes a new one be read anew."""
    path = Path(folder)
    return read_claim(Item("claims", path.name, path))


def paper_title(paper: str) -> str:
    """The title under which a paper is known."""
    return ENTRIES[REFERENCE[paper]][1]["title"].replace("{", "").replace("}", "") if paper in REFERENCE else paper


def measured(m: dict[str, Any] | None) -> str:
    """``0.12 [0.10, 0.15] unit``; a dash where nothing was measured."""
    if not m or m.get("value") is None:
        return "–"
    interval = "" if m.get("low") is None or m.get("high") is None else f" [{number(m['low'])}, {number(m['high'])}]"
    unit = f" {m['unit']}" if m.get("unit") else ""
    return f"{number(m['value'])}{interval}{unit}"


def p_words(d: dict[str, Any]) -> str:
    """``0.004 (exact sign flips 0.125)``; a dash where there is no evidence."""
    p, exact = d.get("p"), d.get("p_exact")
    if p is None:
        return "–"
    return number(p) + (f" (exact sign flips of the units {number(exact)})" if exact is not None else "")


def finding_html(d: dict[str, Any]) -> str:
    """Verdict, statement, numbers here and in the paper, and effect beside control on one axis."""
    css, sign = SIGNS.get(d["verdict"], ("open", "○"))
    numbers = [
        div("n", span("k", "here"), f"<b>{escape(measured(d['effect']))}</b>"),
        div("n", span("k", "control"), escape(measured(d["control_measured"]))),
        div("n", span("k", "n"), number(d["n"]), f' <span class="k">{escape(d.get("unit") or "")}</span>'),
        div("n", span("k", "the paper"), escape(d["paper_number"])),
    ]
    how = div(
        "how",
        f"{escape(d.get('experiment') or '')} <b>Criterion.</b> {escape(d.get('criterion') or '')}"
        f" {escape(d.get('note') or '')}",
    )
    return div(
        f"claim {css}",
        div("v", f'<span aria-hidden="true">{sign}</span> {html.escape(d["verdict"])}'),
        div(
            "s",
            f"<b>{escape(d['statement'])}</b>",
            div("ns", *numbers),
            f"<details><summary>how it was measured</summary>{how}</details>",
        ),
        forest(d),
    )


def forest(d: dict[str, Any]) -> str:
    """Effect (filled) and control (hollow) with their intervals, and zero, on one axis."""
    frame = comparison(d)
    if frame.empty:
        return div("forest empty", "nothing to draw")
    ends = [v for c in ("value", "low", "high") for v in frame[c] if v == v]
    lo, hi = min(0.0, *ends), max(0.0, *ends)
    room = (hi - lo) or 1.0

    def at(v: float) -> float:
        return 4 + 92 * (v - lo) / room

    rows = [f'<i class="zero" style="left:{at(0.0):.1f}%"></i>']
    for j, row in enumerate(frame.to_dict("records")):
        low, high = (row["low"], row["high"]) if row["low"] == row["low"] else (row["value"], row["value"])
        top = 10 + 16 * j
        rows.append(
            f'<i class="bar" style="left:{at(low):.1f}%;width:{max(0.0, at(high) - at(low)):.1f}%;top:{top + 4}px"></i>'
        )
        rows.append(f'<i class="dot {row["what"]}" style="left:{at(row["value"]):.1f}%;top:{top}px"></i>')
    alt = " · ".join(f"{r['what']} {number(r['value'])}" for r in frame.to_dict("records"))
    ticks = (
        f'<span style="left:{at(lo):.1f}%">{number(lo)}</span><span class="r"'
        f' style="left:{at(hi):.1f}%">{number(hi)}</span>'
    )
    return div("forest", "".join(rows), div("x", ticks), attrs=f'role="img" aria-label="{html.escape(alt)}"')
