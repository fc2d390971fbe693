"""Versions, keys, how to cite, and a self-test of this workspace."""

from __future__ import annotations

import html
import importlib.metadata
import platform

import streamlit as st

from workbench.markup.tokens import escape
from workbench.provenance import check_files
from workbench.version import __version__
from workbench_ui.kit import data, panels

KEYS = (
    ("J", "next latent"),
    ("K", "previous latent"),
    ("P", "pin the latent, or unpin it"),
    ("L", "put the latent into the list used last"),
    ("E", "export; on the export page: download"),
)


@st.fragment(key="about_body")
def body() -> None:
    """Everything about the program and the data at hand."""
    with panels.guarded("This page"):
        panels.page_title("About", "Interpretability Workbench")
        left, right = st.columns(2, gap="large")
        with left:
            panels.heading("Versions")
            st.html(
                panels.table(["", ""], [[name, f"<code>{html.escape(value)}</code>"] for name, value in versions()])
            )
            panels.heading("Keys")
            st.html(
                panels.table(
                    ["key", "does"], [[f'<span class="wb-keys"><kbd>{k}</kbd></span>', what] for k, what in KEYS]
                )
            )
        with right:
            panels.heading("How to cite")
            from workbench.exporting.references import bibtex

            st.code(bibtex(()), language=None, wrap_lines=True)
            panels.heading("Self-test", "every file against the digest in its manifest")
            if st.button("Check this workspace", icon=":material/verified:", key="ab_check"):
                check()
        panels.heading("What the numbers rest on")
        st.html(panels.table(["kind", "id", "data version", "made by"], results()))


def versions() -> list[tuple[str, str]]:
    """Versions of the program and of what draws the pages."""
    libraries = ("streamlit", "plotly", "pandas", "numpy", "matplotlib")
    return [
        ("workbench", __version__),
        ("Python", platform.python_version()),
        *((name, importlib.metadata.version(name)) for name in libraries),
    ]


def results() -> list[list[str]]:
    """Every result of the workspace with its version and command."""
    index = data.index()
    return [
        [
            html.escape(kind),
            escape(e.id),
            f"<code>{html.escape(e.version)}</code>",
            f"<code>{escape(panels.clip(e.manifest.command, 110) or '–')}</code>",
        ]
        for kind, entries in index.entries.items()
        for e in entries.values()
    ]


def check() -> None:
    """Digest every file and say which differ."""
    entries = [e for kind in data.index().entries.values() for e in kind.values() if e.kind != "stores"]
    bar = st.progress(0.0, "reading …")
    bad: list[tuple[str, list[str]]] = []
    for j, e in enumerate(entries):
        found = check_files(e.path, e.manifest)
        if found:
            bad.append((f"{e.kind}/{e.id}", found))
        bar.progress((j + 1) / max(1, len(entries)), f"{j + 1} of {len(entries)} results")
    for where, files in bad:
        panels.problem(f"{where} changed since it was written", ", ".join(files))
    if not bad:
        panels.note(
            f"All files of {len(entries)} results are as they were written. Stores: <code>workbench check STORE</code>."
        )


body()
