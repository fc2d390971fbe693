"""What the server reads while nobody waits: matplotlib, which the previews on *Export* are drawn with.

Its import takes half a second and would be the larger part of that page's first opening.
"""

from __future__ import annotations

import threading

import streamlit as st

REST = 3.0  # seconds after the first page: a visitor reads it, and nothing else is being made


@st.cache_resource(show_spinner=False)
def read_ahead() -> threading.Timer:
    """Begin, once in the life of a server, ``REST`` seconds from now, beside the pages."""
    timer = threading.Timer(REST, _read)
    timer.daemon = True  # a server that is stopped does not wait for it
    timer.start()
    return timer


def _read() -> None:
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
