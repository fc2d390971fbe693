"""Training in the browser: the same contexts repainted for every snapshot, without a server round trip.

One message carries all snapshots (uint8, a few hundred kB); a native range input steps through them. Tokens are made
visible on the server and enter the page as text nodes only.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from workbench.markup.tokens import visible
from workbench.results.evolution import SnapshotContext
from workbench_ui.components import mount

LIMIT = 12  # contexts


def message(
    contexts: list[SnapshotContext], names: list[str], norms: np.ndarray, *, start: int | None = None
) -> dict[str, Any]:
    """Everything the browser needs: readings as uint8 of ``top`` (one scale for all contexts), norms [S], names [S].

    It starts at snapshot ``start``, by default where the norm is largest.
    """
    shown = contexts[:LIMIT]
    top = max((float(c.readings.max(initial=0.0)) for c in shown), default=0.0)
    scale = 255.0 / top if top > 0 else 0.0
    return {
        "snapshots": [visible(n) for n in names],
        "norms": [round(float(n), 6) if np.isfinite(n) else 0.0 for n in norms],
        "top": top,
        "start": int(np.nanargmax(norms)) if start is None and np.isfinite(norms).any() else start,
        "contexts": [
            {
                "tokens": [visible(t) for t in c.tokens],
                "values": (
                    base64.b64encode(np.ceil(c.readings * scale).clip(0, 255).astype(np.uint8).tobytes()).decode()
                ),
                "peak": int(c.peak),
                "place": f"{c.seq}:{c.start + c.peak}",
            }
            for c in shown
        ],
    }


def scrubber(data: dict[str, Any], key: str, keep: Callable[[int], None] = lambda _: None) -> None:
    """Mount the scrubber; ``keep`` is told the snapshot at which it was left."""

    def left() -> None:
        at = getattr(st.session_state.get(key), "snapshot", None)
        if isinstance(at, int | float):
            keep(int(at))

    mount("scrubber")(key=key, data=data, on_snapshot_change=left)


def reading_table(contexts: list[SnapshotContext], names: list[str]) -> pd.DataFrame:
    """The scrubber's numbers: one row per context, its peak token and the reading there at every snapshot."""
    rows = [
        {
            "sequence:position": f"{c.seq}:{c.start + c.peak}",
            "token": c.tokens[c.peak],
            **dict(zip(names, map(float, c.readings[:, c.peak]), strict=True)),
        }
        for c in contexts[:LIMIT]
    ]
    return pd.DataFrame(rows)
