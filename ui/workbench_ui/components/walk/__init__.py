"""J and K on a latent's page: the browser counts the presses and asks for the last one, so none is lost.

It is told the latents around the one shown, in the order one walks in: that of the table or list the address names,
else by number; and for the nearest of them what one looks at first, so that it is there before the server answers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import streamlit as st

from workbench_ui.components import mount
from workbench_ui.kit import state

REACH = 250  # latents on each side that the browser knows; more arrive with every answer
AHEAD = (1, -1, 2)  # steps whose contexts the browser holds beforehand


def walk(
    order: np.ndarray, latent: int, name: str, html: Callable[[int], str], place: str, key: str = "wb_walk"
) -> None:
    """Mount it inside the page's fragment, after everything else. ``name`` tells one order from another; ``html`` is
    what the container ``place`` shows of a latent: the program's own markup, of which the browser takes over elements
    without an address and the attributes that :mod:`workbench.markup.tokens` writes, nothing else.
    """
    found = np.flatnonzero(order == latent)
    if not len(found):  # from outside of the order one walks into its beginning
        order, found = np.concatenate([[latent], order]), np.array([0])
    here = int(found[0])
    lo = max(0, here - REACH)
    near = order[lo : here + REACH + 1].tolist()
    ahead = [near[here - lo + by] for by in AHEAD if 0 <= here - lo + by < len(near)]
    mount("walk")(
        key=key,
        data={
            "order": near,
            "at": here - lo,
            "list": name,
            "place": place,
            "ready": {str(other): html(other) for other in ahead},
        },
        on_to_change=lambda: _go(key, near),
        height=1,
    )


def _go(key: str, near: list[int]) -> None:
    asked = getattr(st.session_state.get(key), "to", None)
    if asked in near:
        state.put(i=int(asked))
