"""What is costly to draw waits, at its own height, until the reader comes near it: a Plotly figure takes the browser a
tenth of a second and more, and a page of eight of them would rest for none of its reader's good. Whole sections below
the first screen wait likewise (:func:`when_near`): every element costs, on the server and in the browser.

What was drawn once stays drawn until another page is opened.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from workbench_ui.components import mount
from workbench_ui.kit import panels

EVERY = "wb_every_chart"  # in the session: draw at once; for tests, which scroll nowhere
_NEAR, _PAGE = "wb_near", "wb_near_page"


def forget(page: str) -> None:
    """Let everything wait again where another page is opened; called with every run of the program."""
    if st.session_state.get(_PAGE) != page:
        st.session_state[_PAGE], st.session_state[_NEAR] = page, set()


def is_near(key: str, height: int) -> bool:
    """Whether what is called ``key`` is to be drawn now; else its place is kept, ``height`` pixels of it. To be asked
    inside a fragment of its own, which runs again when the reader comes near.
    """
    seen: set[str] = st.session_state.setdefault(_NEAR, set())
    if key in seen or st.session_state.get(EVERY):
        return True
    mount("near")(key=f"{key}_near", data={}, on_near_change=lambda: seen.add(key), height=height)
    return False


@st.fragment
def when_near(key: str, height: int, what: str, draw: Callable[[], object]) -> None:
    """``draw()`` once the reader comes near, ``height`` pixels of place until then; a fragment of its own. ``what``
    begins the sentence that says what could not be shown.
    """
    with panels.guarded(what):
        if is_near(key, height):
            draw()
