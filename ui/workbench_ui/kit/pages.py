"""The pages. One whose kind of result is not there yet stays out of the navigation; its address still answers, and says
which command makes the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from workbench_ui.kit.index import Index


@dataclass(frozen=True)
class PageSpec:
    """One page: file stem, title, icon, one line of help, group of the navigation, and the kind of result it needs."""

    stem: str
    title: str
    icon: str
    help: str
    group: str = ""
    needs: str = ""

    def shown(self, index: Index) -> bool:
        """Whether the workspace holds what the page shows: ``browsable`` is any dictionary or its latents, ``weights``
        a dictionary itself.
        """
        if self.needs == "browsable":
            return bool(index.dictionaries)
        return not self.needs or bool(index.of("dictionaries" if self.needs == "weights" else self.needs))


PAGES: tuple[PageSpec, ...] = tuple(
    PageSpec(*row)
    for row in (
        (
            "overview",
            "Overview",
            "dashboard",
            "What this workspace holds, what is missing, and which command makes it.",
        ),
        (
            "results",
            "Results",
            "fact_check",
            "What three papers found, measured again here: verdicts with controls.",
            "",
            "claims",
        ),
        (
            "latents",
            "Latents",
            "table_rows",
            "All latents of a dictionary: sort, filter, search; open one.",
            "",
            "browsable",
        ),
        (
            "latent",
            "Latent",
            "center_focus_strong",
            "One latent: statistics, contexts, logit effects, neighbours.",
            "",
            "browsable",
        ),
        (
            "probe",
            "Text probe",
            "edit_note",
            "Your text in a Transformer and a Mamba: which latents fire where; steering.",
            "",
            "weights",
        ),
        (
            "mppc",
            "Matches",
            "join_inner",
            "Which latents of one model have a twin in the other, beside baselines.",
            "Analyse",
            "matches",
        ),
        ("pair", "Pair", "compare_arrows", "Two latents of different models on the same tokens.", "Analyse", "matches"),
        ("training", "Training", "timeline", "When latents are born, grow and die.", "Analyse", "evolution"),
        (
            "induction",
            "Induction & state",
            "account_tree",
            "Where a Transformer reads and a Mamba writes what it needs.",
            "Analyse",
            "circuits",
        ),
        (
            "states",
            "What is written and read",
            "layers",
            "Token by token: what a state keeps, for how long, who reads it; attention beside it.",
            "Analyse",
            "states",
        ),
        ("graph", "Graph", "hub", "Which latents make which, and which make the next token.", "Analyse", "graphs"),
        ("map", "Map", "scatter_plot", "Decoder directions at a glance.", "Analyse", "maps"),
        (
            "text",
            "Data",
            "article",
            "What the tokens of a store are: documents, special ids, what is left out, windows at random.",
            "Work",
            "stores",
        ),
        ("lists", "Lists", "bookmarks", "Named lists of latents with notes.", "Work"),
        ("export", "Export", "ios_share", "A figure with its data, table, references and provenance.", "Work"),
        ("about", "About", "info", "Versions, keys, citation, self-test.", "Work"),
    )
)

STEMS = frozenset(page.stem for page in PAGES)


def pages_for(index: Index | None, folder: Path) -> dict[str, list[st.Page]]:
    """All pages for Streamlit, by group of the navigation; without a readable workspace it shows the overview only."""
    groups: dict[str, list[st.Page]] = {}
    for spec in PAGES:
        shown = spec.stem == "overview" or (index is not None and spec.shown(index))
        page = st.Page(
            folder / f"{spec.stem}.py",
            title=spec.title,
            icon=f":material/{spec.icon}:",
            help=spec.help,
            default=spec.stem == "overview",
            visibility="visible" if shown else "hidden",
        )
        groups.setdefault(spec.group, []).append(page)
    return groups
