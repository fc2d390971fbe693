"""Which pages exist for a workspace. A page whose kind of result is not there yet stays out of the navigation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from ui.kit.index import Index


@dataclass(frozen=True)
class PageSpec:
    """One page: file stem, title, icon, one line of help, group of the navigation, and when it is shown."""

    stem: str
    title: str
    icon: str
    help: str
    group: str = ""
    shown: Callable[[Index], bool] = lambda index: True


PAGES: tuple[PageSpec, ...] = (
    PageSpec("overview", "Overview", "dashboard", "What this workspace holds, what is missing, and which command makes it."),
    PageSpec(
        "results",
        "Results",
        "fact_check",
        "What three papers found, measured again here: verdicts with controls.",
        shown=lambda x: bool(x.of("claims")),
    ),
    PageSpec(
        "latents",
        "Latents",
        "table_rows",
        "All latents of a dictionary: sort, filter, search; open one.",
        shown=lambda x: bool(x.dictionaries),
    ),
    PageSpec(
        "latent",
        "Latent",
        "center_focus_strong",
        "One latent: statistics, contexts, logit effects, neighbours.",
        shown=lambda x: bool(x.dictionaries),
    ),
    PageSpec(
        "probe",
        "Text probe",
        "edit_note",
        "Your text through a Transformer and a Mamba: which latents fire where; steering.",
        shown=lambda x: any(d.entry is not None for d in x.dictionaries.values()),
    ),
    PageSpec(
        "mppc",
        "Matches",
        "join_inner",
        "Which latents of one model have a twin in the other, beside baselines.",
        group="Analyse",
        shown=lambda x: bool(x.of("matches")),
    ),
    PageSpec(
        "pair",
        "Pair",
        "compare_arrows",
        "Two latents of different models on the same tokens.",
        group="Analyse",
        shown=lambda x: bool(x.of("matches")),
    ),
    PageSpec(
        "training", "Training", "timeline", "When latents are born, grow and die.", group="Analyse", shown=lambda x: bool(x.of("evolution"))
    ),
    PageSpec(
        "induction",
        "Induction & state",
        "account_tree",
        "Where a Transformer reads and a Mamba writes what it needs.",
        group="Analyse",
        shown=lambda x: bool(x.of("circuits")),
    ),
    PageSpec(
        "graph",
        "Graph",
        "hub",
        "Which latents make which, and which make the next token.",
        group="Analyse",
        shown=lambda x: bool(x.of("graphs")),
    ),
    PageSpec("map", "Map", "scatter_plot", "Decoder directions at a glance.", group="Analyse", shown=lambda x: bool(x.of("maps"))),
    PageSpec("lists", "Lists", "bookmarks", "Named lists of latents with notes.", group="Work"),
    PageSpec("export", "Export", "ios_share", "A figure with its data, table, references and provenance.", group="Work"),
    PageSpec("about", "About", "info", "Versions, keys, citation, self-test.", group="Work"),
)


def pages_for(index: Index | None, folder: Path) -> list[st.Page] | dict[str, list[st.Page]]:
    """Navigation of a workspace; without a readable workspace only the overview."""
    groups: dict[str, list[st.Page]] = {}
    for spec in PAGES:
        if spec.stem == "overview" or (index is not None and spec.shown(index)):
            page = st.Page(
                folder / f"{spec.stem}.py",
                title=spec.title,
                icon=f":material/{spec.icon}:",
                help=spec.help,
                default=spec.stem == "overview",
            )
            groups.setdefault(spec.group, []).append(page)
    return groups
