"""Results: what three papers found, measured again here, each with its control, interval and verdict."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from sae.errors import UserError
from workbench.claims.curves import CURVES
from workbench.claims.figures import comparison
from workbench.claims.rules import BY_CONSTRUCTION, MEANS, VERDICTS
from workbench.markup.tokens import clip, escape, number, visible
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version, choose
from workbench_ui.kit.figures import below, chart, table
from workbench_ui.kit.index import Entry
from workbench_ui.views.findings import PAPERS, finding_html, measured, open_claim, p_words, paper_title


@st.fragment(key="results_body")
def body() -> None:
    """Counts, the findings paper by paper, one of them closer."""
    with panels.guarded("The results"):
        panels.page_title("Results", "what three papers found, measured again on the models of this workspace")
        entries = data.index().of("claims")
        if not entries:
            panels.not_computed("Results", "workbench reproduce all --quick")
            return
        documents = read(entries)
        st.html(counts(documents))
        shown = filters(documents)
        everything(documents)
        for paper in [p for p in PAPERS if any(d["paper"] == p for d in shown)]:
            mine = [d for d in shown if d["paper"] == paper]
            panels.heading(
                paper_title(paper),
                f"{len(mine)} finding{'s' * (len(mine) != 1)} · bars: 95 % intervals, filled = here, hollow = control",
            )
            st.html(f'<div class="wb-claims">{"".join(finding_html(d) for d in mine)}</div>')
        if not shown:
            panels.note("No finding has these verdicts.")
        with panels.guarded("This finding"):
            closer()


def read(entries: list[Entry]) -> list[dict[str, Any]]:
    """All documents that can be read; the others become panels."""
    documents, problems = [], []
    for e in entries:
        try:
            documents.append(open_claim(str(e.path), e.version))
        except UserError as error:
            problems.append((e.id, str(error)))
    for id, why in problems[:3]:
        more = f" ({len(problems) - 3} more cannot be read.)" if id == problems[2:3] and len(problems) > 3 else ""
        panels.problem(f"claims/{id} cannot be read", why + more)
    return documents


def counts(documents: list[dict[str, Any]]) -> str:
    """How many findings there are and how they came out."""
    n = {v: sum(d["verdict"] == v for d in documents) for v in VERDICTS}
    cells = [(v[0].upper() + v[1:], f"{n[v]}", MEANS[v]) for v in VERDICTS]
    counted = len(documents) - n[BY_CONSTRUCTION]
    return panels.stats([("Findings", f"{counted}", "of three papers, tested here"), *cells])


def filters(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The findings with the chosen verdicts."""
    known = [v for v in VERDICTS if any(d["verdict"] == v for d in documents)]
    wanted = (
        st.pills(
            "Verdict",
            known,
            selection_mode="multi",
            label_visibility="collapsed",
            **state.tie_many("verdicts", known, known),
        )
        or known
    )
    return [d for d in documents if d["verdict"] in wanted]


def everything(documents: list[dict[str, Any]]) -> None:
    """All numbers as one table, and the table for a paper."""
    rows = [
        {
            "paper": d["paper"],
            "finding": d["statement"],
            "verdict": d["verdict"],
            "here": measured(d["effect"]),
            "control": measured(d["control_measured"]),
            "n": d["n"],
            "the paper": d["paper_number"],
        }
        for d in documents
    ]
    below("rs_all", pd.DataFrame(rows), ("finding",), figure="claims_table", source="")


def closer() -> None:
    """One finding: how it was measured, effect beside control, its own table, its export."""
    panels.heading("One finding, closer")
    entry = choose(
        "claims", "Finding", "c", what="Results", command="reproduce all --quick", width=720, text=lambda e: _line(e)
    )
    if entry is None:
        return
    check_version(entry, "c")
    d = open_claim(str(entry.path), entry.version)
    left, right = st.columns([3, 2], gap="large")
    with left:
        if comparison(d).empty:
            panels.note(f"Nothing was measured: {escape(clip(str(d.get('note') or d['verdict']), 400))}")
        else:
            chart("rs_one", "claim", entry, height=190)
            if entry.id in CURVES and (entry.path / "table.parquet").is_file():
                chart("rs_curve", "claim_curve", entry, height=260)
        path = entry.path / "table.parquet"
        if path.is_file():
            with st.expander("What was measured, run by run", key="rs_table", on_change="rerun") as box:
                if box.open:
                    table(_table(str(path), entry.version))
    with right:
        said = d | {"p_words": p_words(d)}
        rows = [[what, escape(clip(str(said.get(key) or "–"), 500))] for what, key in METHOD]
        rows.append(["n", number(d["n"])])
        st.html(panels.table(["", ""], rows))


METHOD = (
    ("measured by", "experiment"),
    ("control", "control"),
    ("criterion", "criterion"),
    ("one of the n is a", "unit"),
    ("p, one-sided", "p_words"),
    ("what would change it", "would_change"),
    ("the paper", "paper_number"),
    ("section", "section"),
    ("note", "note"),
)


def _line(e: Entry) -> str:
    try:
        d = open_claim(str(e.path), e.version)
    except UserError:
        return visible(e.id)
    return visible(f"{d['verdict']} · {clip(d['statement'], 90)}")


@st.cache_resource(show_spinner=False, max_entries=20)
def _table(path: str, version: str) -> pd.DataFrame:
    return pd.read_parquet(path)


body()
