"""An attribution graph in the browser: pointing at a node lights its links up, choosing it asks for its details, and
the arrow keys walk from node to node. Texts enter the page as text nodes only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from workbench_ui.components import mount


def network(data: dict[str, Any], key: str, *, chosen: Callable[[str], None], pinned: Callable[[str], None]) -> None:
    """Mount the graph of a :meth:`workbench_ui.views.graph_drawing.Drawing.message`.

    ``chosen`` and ``pinned`` are told the id of a node that was clicked, or on which Enter or P was pressed.
    """

    def told(what: str, act: Callable[[str], None]) -> Callable[[], None]:
        def told_now() -> None:
            id = getattr(st.session_state.get(key), what, None)
            if isinstance(id, str) and len(id) < 200:
                act(id)

        return told_now

    mount("network")(
        key=key, data=data, on_chosen_change=told("chosen", chosen), on_pinned_change=told("pinned", pinned)
    )
