"""J and K on a latent's page: the browser counts the presses and asks for the last one, so none is lost.

It is told the latents around the one shown, in the order one walks in: that of the table or list the address names,
else by number.
"""

from __future__ import annotations

import numpy as np
import streamlit as st

from workbench_ui.components import mount
from workbench_ui.kit import state

REACH = 250  # latents on each side that the browser knows; more arrive with every answer


def walk(order: np.ndarray, latent: int, name: str, key: str = "wb_walk") -> None:
    """Mount it inside the page's fragment. ``name`` tells one order from another."""
    found = np.flatnonzero(order == latent)
    if not len(found):  # from outside of the order one walks into its beginning
        order, found = np.concatenate([[latent], order]), np.array([0])
    place = int(found[0])
    lo = max(0, place - REACH)
    near = order[lo : place + REACH + 1].tolist()
    mount("walk")(
        key=key,
        data={"order": near, "at": place - lo, "list": name},
        on_to_change=lambda: _go(key, near),
        height=1,
    )


def _go(key: str, near: list[int]) -> None:
    asked = getattr(st.session_state.get(key), "to", None)
    if asked in near:
        state.put(i=int(asked))
