"""Exports that are documents: which latents, what is in them, and their files to download."""

from __future__ import annotations

from typing import Any

import streamlit as st

from sae.errors import UserError
from workbench.markup.tokens import escape, visible
from workbench.results.lists import read_lists
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.export import make_zip


def selection_form(start: int | None) -> dict[str, Any]:
    """A list of the workspace, or latents by number.

    What :class:`workbench.exporting.documents.selection.SelectionOptions` takes.
    """
    known = {i: x for i, x in read_lists(data.workspace_folder())[0].items() if x.items}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        ways = ["latents", "list"] if known else ["latents"]
        asked = state.get_choice("list", list(known), "")
        if "ex_way" not in st.session_state:
            st.session_state["ex_way"] = "list" if asked else "latents"
        way = st.segmented_control(
            "What", ways, key="ex_way", required=True, format_func=lambda w: {"latents": "Latents", "list": "A list"}[w]
        )
        options: dict[str, Any] = {}
        if way == "list":
            ids = list(known)
            if st.session_state.get("ex_list") not in ids:
                st.session_state["ex_list"] = asked or ids[0]
            options["list"] = st.selectbox(
                "List", ids, key="ex_list", format_func=lambda i: visible(f"{known[i].name} · {len(known[i].items)}")
            )
        else:
            text = st.text_input(
                "Latents",
                value=str(start if start is not None else 0),
                key="ex_latents",
                max_chars=2000,
                width=320,
                placeholder="3, 17, 256",
            )
            options["latents"] = [
                int(x) for x in (text or "").replace(",", " ").split() if x.isdecimal() and len(x) < 10
            ]
        n = st.number_input("Contexts per group", 1, 50, 10, key="ex_contexts", step=1, width=160)
    if n != 10:
        options["contexts"] = int(n)
    return options


def share_buttons(source: str, options: dict[str, Any], key: str) -> None:
    """Two downloads of the same latents: the HTML file itself, and Neuronpedia's JSON as a zip with provenance."""
    st.download_button(
        "Share as a page",
        lambda: document("latents_page", source, options)["latents.html"],
        file_name="latents.html",
        mime="text/html",
        icon=":material/web:",
        on_click="ignore",
        key=f"{key}_html",
        help="One HTML file with contexts, histograms and logit effects; opens anywhere, loads nothing",
    )
    st.download_button(
        "Neuronpedia JSON",
        lambda: make_zip("neuronpedia", source, options, {}),
        file_name="neuronpedia.zip",
        mime="application/zip",
        icon=":material/data_object:",
        on_click="ignore",
        key=f"{key}_np",
        help="Feature JSON in Neuronpedia's schema, with provenance",
    )


def document(figure: str, source: str, options: dict[str, Any]) -> dict[str, bytes]:
    """The files of a document."""
    from workbench.exporting import FigureSpec, bundle
    from workbench.workspace import Workspace

    spec = FigureSpec.model_validate({"figure": figure, "source": source, "options": options})
    return dict(bundle(spec, Workspace(data.workspace_folder(), create=False)).files)


def contents(files: dict[str, bytes]) -> str:
    """Names and sizes of the files."""
    rows = [[f"<code>{escape(name)}</code>", f"{len(content):,}"] for name, content in sorted(files.items())]
    return panels.table(["file", "bytes"], rows, numeric=frozenset({1}))


def try_document(figure: str, source: str, options: dict[str, Any]) -> dict[str, bytes] | None:
    """The files, or None with a panel that says why not."""
    try:
        return document(figure, source, options)
    except UserError as e:
        panels.note(escape(str(e)), "warn")
        return None
