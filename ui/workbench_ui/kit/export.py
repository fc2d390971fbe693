"""The export button.

The same :func:`workbench.exporting.bundle` that ``workbench export`` calls, made when it is clicked.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from workbench_ui.kit import data


def export_button(
    figure: str,
    source: str,
    options: dict[str, Any] | None = None,
    *,
    key: str,
    label: str = "Export",
    name: str = "",
    **button: Any,
) -> None:
    """Download figure, data, table, references and provenance as one zip, called ``name`` (by default as the figure).

    Nothing is computed before the click.
    """

    def make() -> bytes:
        return make_zip(figure, source, options or {}, {})

    st.download_button(
        label,
        make,
        file_name=f"{name or figure}.zip",
        mime="application/zip",
        icon=":material/download:",
        on_click="ignore",
        key=key,
        help="PDF, SVG, PNG, CSV, Parquet, LaTeX table, BibTeX, caption, provenance and a script that makes it again",
        **button,
    )


def make_zip(figure: str, source: str, options: dict[str, Any], style: dict[str, Any], caption: str = "") -> bytes:
    """The bytes of the bundle."""
    from workbench.exporting import FigureSpec, bundle
    from workbench.workspace import Workspace

    spec = FigureSpec.model_validate(
        {"figure": figure, "source": source, "options": options, "style": style, "caption": caption}
    )
    return bundle(spec, Workspace(data.workspace_folder(), create=False)).zip
