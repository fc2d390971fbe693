"""What runs in the browser: one folder per behaviour, its script, style and markup as files beside the Python that
feeds it.

``mount("scrubber")`` is the Streamlit component made of ``scrubber/scrubber.{js,css,html}``; scripts take their data as
JSON and put text into the page as text nodes only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

HERE = Path(__file__).parent


@st.cache_resource(show_spinner=False)
def mount(name: str, *, isolated: bool = True) -> Callable[..., Any]:
    """The component in the folder ``name``; outside of the shadow DOM, and so in the page's own style, unless
    ``isolated``.
    """
    parts = {kind: HERE / name / f"{name}.{kind}" for kind in ("html", "css", "js")}
    texts = {kind: path.read_text(encoding="utf-8") for kind, path in parts.items() if path.is_file()}
    return st.components.v2.component(f"workbench_{name}", isolate_styles=isolated, **texts)
