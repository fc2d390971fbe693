"""What atoms do in the place of a recurrent layer's own writes: a panel for the page of circuits."""

from __future__ import annotations

from typing import Any

import streamlit as st

from workbench.markup.tokens import escape, visible
from workbench.results.substitutions import MEASURE_NAMES, SHOWN
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version, choose_of
from workbench_ui.kit.figures import chart


def section() -> None:
    """How often an atom in a write's place beats writing nothing, beside controls; nothing where none was tried."""
    entries = data.index().of("substitutions")
    if not entries:
        return
    panels.heading(
        "Atoms in the place of writes",
        "where an atom of a dictionary of writes fires, it replaces what the recurrent layer writes: is the model"
        " nearer to its clean run than with nothing written?",
    )
    entry = choose_of(
        entries,
        "Dictionary of writes",
        "su",
        what="Substitutions",
        command="substitute DICTIONARY",
        text=lambda e: visible(e.id),
    )
    if entry is None:
        return
    check_version(entry, "su")
    n, about = entry.numbers, entry.metadata
    fitted = n["closed_form"]["r2"]
    st.html(
        panels.stats(
            [
                ("Atoms win", _value(n["win_rate"]["win_rate"]), f"{_interval(n['win_rate'])} firings"),
                *((SHOWN[arm], _value(c["win_rate"]), _interval(c)) for arm, c in n["controls"].items()),
                ("Beats another atom", _value(n["against_permuted"]["win_rate"]), _interval(n["against_permuted"])),
                ("Damage repaired", _value(n["win_rate"]["repaired"]), "of all nats lost with nothing written"),
                ("Closed form", _value(fitted["value"]), "R² of the change of the logits at the write"),
                ("Atoms", f"{n['atoms']}", f"tried, of {about['alive']} that fire; {escape(about['kind'])} layer"),
            ]
        )
    )
    names = list(MEASURE_NAMES)
    by = (
        st.segmented_control(
            "By",
            names,
            format_func=MEASURE_NAMES.__getitem__,
            required=True,
            **state.tie_choice("by", names, names[0]),
        )
        or names[0]
    )
    left, right = st.columns(2, gap="large")
    with left:
        chart("su_wins", "substitution_wins", entry, {"measure": by}, height=320)
    with right:
        chart("su_ranks", "substitution_ranks", entry, height=320)


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(found: dict[str, Any]) -> str:
    if found["low"] is None or found["high"] is None:
        return f"n = {found['n']}"
    return f"95 % {found['low']:.2f} – {found['high']:.2f}, n = {found['n']}"
