"""Two latents on the same text, in the browser: colour is A, underline is B, and B can be read a few tokens later at
once.

One message carries both activations of every token; hovering, the shift and the marks on the joint histogram need no
server. The chosen shift is told to the server afterwards, which then recomputes the statistics. Tokens are made visible
on the server and enter the page as text nodes only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import streamlit as st

from workbench.markup.tokens import visible
from workbench.results.matches import SHIFTS, Strip
from workbench_ui.components import mount


def message(
    strips: Sequence[Strip], tops: tuple[float, float], joint: tuple[float, float], length: int, *, shift: int = 0
) -> dict[str, Any]:
    """Everything the browser needs. ``strips`` are unshifted and two tokens wider than shown, so that a shift finds its
    tokens.

    ``tops`` are the activations of the strongest colour and the thickest line, ``joint`` those of the joint histogram's
    last bins; ``length`` is that of a sequence.
    """
    pad = max(SHIFTS)
    shown = []
    for s in strips:
        lo, hi = (pad if s.start > 0 else 0), len(s.tokens) - (pad if s.start + len(s.tokens) < length else 0)
        b = np.zeros(hi - lo + 2 * pad)
        first = max(0, lo - pad)
        part = np.asarray(s.acts_b[first : hi + pad])
        b[first - (lo - pad) : first - (lo - pad) + len(part)] = part
        shown.append(
            {
                "tokens": [visible(t) for t in s.tokens[lo:hi]],
                "a": [round(float(v), 5) for v in s.acts_a[lo:hi]],
                "b": [round(float(v), 5) for v in b],
                "peak": s.peak - lo,
                "start": s.start + lo,
                "place": f"{s.seq}:{s.start + s.peak}",
            }
        )
    return {
        "strips": shown,
        "top": [t or 1.0 for t in tops],
        "joint": list(joint),
        "shifts": list(SHIFTS),
        "shift": shift,
        "pad": pad,
    }


def aligned(data: dict[str, Any], key: str, keep: Callable[[int], None] = lambda _: None) -> None:
    """Mount the strips; the chosen shift is in ``st.session_state[key].shift``, and ``keep`` is told of it."""
    mount("aligned")(key=key, data=data, on_shift_change=lambda: keep(chosen_shift(key)))


def chosen_shift(key: str) -> int:
    """The shift that was chosen last, 0 before."""
    found = getattr(st.session_state.get(key), "shift", None)
    return int(found) if isinstance(found, int | float) and int(found) in SHIFTS else 0
