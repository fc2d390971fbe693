"""What atoms do in the place of a recurrent layer's own writes: a panel for the page of circuits."""

from __future__ import annotations

import streamlit as st

from workbench.markup.tokens import escape, visible
from workbench.results.substitutions import MEASURE_NAMES, SHOWN
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version, choose_of
from workbench_ui.kit.figures import chart
from workbench_ui.kit.panels import interval_and_n, two_places


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
    fitted, rival, strongest = n["closed_form"]["r2"], n["against_permuted"], n["leading"]["atom"]
    leading = ("Strongest atoms", two_places(strongest["win_rate"]), f"of their write: {interval_and_n(strongest)}")
    if about.get("strongest"):
        panels.note("Tried only where the atom is the strongest of its write.")
    st.html(
        panels.stats(
            [
                ("Atoms win", two_places(n["win_rate"]["win_rate"]), f"{interval_and_n(n['win_rate'])} firings"),
                *([] if about.get("strongest") else [leading]),
                *(
                    (SHOWN[arm].capitalize(), two_places(c["win_rate"]), interval_and_n(c))
                    for arm, c in n["controls"].items()
                ),
                ("Beats another atom", two_places(rival["win_rate"]), interval_and_n(rival)),
                ("Damage repaired", two_places(n["win_rate"]["repaired"]), "of all nats lost with nothing written"),
                ("Closed form", two_places(fitted["value"]), "R² of the change of the logits at the write"),
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
        chart("su_ranks", "substitution_ranks", entry, height=440)
