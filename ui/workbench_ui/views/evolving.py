"""Evolutions for the pages: opened once, their statistics as a table."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from workbench.markup.tokens import escape, number
from workbench.results.evolution import Evolution
from workbench_ui.kit import panels


@st.cache_resource(show_spinner=False, max_entries=4)
def open_evolution(folder: str, version: str) -> Evolution:
    """An evolution, kept; ``version`` makes a new one be read anew."""
    return Evolution.open(folder)


def statistics_table(statistics: pd.DataFrame) -> str:
    """Claims with value, interval, null and verdict."""
    rows = []
    for x in statistics.to_dict("records"):
        interval = f"{number(x.get('low'))} … {number(x.get('high'))}" if pd.notna(x.get("low")) else "–"
        null = (
            f"{number(x.get('null_mean'))} ({number(x.get('null_low'))} … {number(x.get('null_high'))})"
            if pd.notna(x.get("null_mean"))
            else "–"
        )
        n = f"{int(x['n']):,}" if pd.notna(x.get("n")) else "–"
        p = number(x.get("p")) if pd.notna(x.get("p")) else "–"
        rows.append(
            [escape(x.get("claim", "")), number(x.get("value")), interval, null, p, n, escape(x.get("verdict") or "–")]
        )
    return panels.table(
        ["claim", "value", "95 %", "null", "p", "n", "verdict"], rows, numeric=frozenset({1, 2, 3, 4, 5})
    )
