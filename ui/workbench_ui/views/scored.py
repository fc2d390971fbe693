"""Scores of a latent's label on its page: scorers side by side, a column for each explanation and judge."""

from __future__ import annotations

from typing import Any

import streamlit as st

from workbench.markup.tokens import escape, visible
from workbench.results.scores import SCORERS, ScoreRecords
from workbench_ui.kit import data, panels
from workbench_ui.kit.figures import chart
from workbench_ui.kit.index import Dictionary, Entry

HEIGHT = 250


def scores_of(d: Dictionary) -> list[Entry]:
    """Scores of a dictionary's labels, by id."""
    return [e for e in data.index().of("scores") if e.metadata.get("dictionary") == d.id]


@st.cache_resource(show_spinner=False, max_entries=12)
def open_scores(folder: str, version: str) -> ScoreRecords:
    """Scores, kept; ``version`` makes new ones be read anew."""
    found = ScoreRecords.open(folder)
    _ = found.table
    return found


def scored(d: Dictionary, latent: int, *, labelled: bool) -> None:
    """The panel; where nothing was scored, the command that does it for latents with a label."""
    entries = scores_of(d)
    if not entries and not labelled:
        return
    panels.heading("Scores of its label", "does it tell where the latent fires, on text it was not made from?")
    if not entries:
        panels.not_computed(
            "Scores of labels",
            f"workbench score {d.id}",
            "Detection, near misses, fuzzing, shared words and simulation side by side, each with its interval.",
            state="can be made for this dictionary",
        )
        return
    found = [(e, open_scores(str(e.path), e.version).of(latent)) for e in entries]
    found = [(e, table) for e, table in found if len(table)]
    if not found:
        panels.note("Labels of other latents were scored; this one was not in the sample.")
        return
    heads, rows = ["scorer", "chance"], []
    heads += [f"{visible(e.metadata['explainer'])}, judged by {visible(e.metadata['judge'])}" for e, _ in found]
    by_scorer = [{str(r["scorer"]): r for r in table.to_dict("records")} for _, table in found]
    for name, known in SCORERS.items():
        cells = [_cell(scores[name]) if name in scores else "–" for scores in by_scorer]
        chance = next((f"{s[name]['chance']:g}" for s in by_scorer if name in s), "–")
        rows.append([f'<span title="{escape(known.meaning)}">{escape(known.name)}</span>', chance, *cells])
    st.html(panels.table(heads, rows))
    panels.note("A score speaks of the label and of its judge: a judge that cannot read gives chance to every label.")
    for k, (entry, _) in enumerate(found):
        chart(f"sc_chart{k}", "explanation_scores", entry, {"latent": latent}, height=HEIGHT)


def _cell(row: dict[str, Any]) -> str:
    """``0.85 [0.72, 0.93] · 20 + 20``; what had no readable answer is said."""
    unread = f" · {row['unreadable']} unreadable" if row["unreadable"] else ""
    if row["value"] != row["value"]:
        return f"not measured{unread}"
    ends = f" [{row['low']:.2f}, {row['high']:.2f}]" if row["low"] == row["low"] else ""
    return f"{row['value']:.2f}{ends} · {row['n_positive']} + {row['n_negative']}{unread}"
