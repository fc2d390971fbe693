"""One result of a kind, chosen by a selector and kept in the address with its version: what every analysis page starts
with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from workbench.markup.tokens import clip, escape, visible
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.index import Entry


def choose(
    kind: str,
    label: str,
    key: str,
    *,
    what: str,
    command: str,
    why: str = "",
    text: Callable[[Entry], str] = lambda e: visible(e.id),
    clears: Sequence[str] = (),
    width: int = 420,
) -> Entry | None:
    """The result the address names under ``key``, else the first; None with a panel where there is none.

    Choosing another one removes the keys in ``clears``, which spoke of the one before. The address holds the data
    version under ``<key>v``; :func:`check_version` warns where a link was made on another.
    """
    return choose_of(
        data.index().of(kind), label, key, what=what, command=command, why=why, text=text, clears=clears, width=width
    )


def choose_of(
    entries: Sequence[Entry],
    label: str,
    key: str,
    *,
    what: str,
    command: str,
    why: str = "",
    text: Callable[[Entry], str] = lambda e: visible(e.id),
    clears: Sequence[str] = (),
    width: int = 420,
) -> Entry | None:
    """:func:`choose` among some results of a kind."""
    if not entries:
        panels.not_computed(what, f"workbench {command}", why)
        return None
    ids = [e.id for e in entries]
    widget = f"wb_{key}_choice"
    st.session_state[widget] = state.get_choice(key, ids, ids[0])
    names = {e.id: text(e) for e in entries}

    def changed() -> None:
        state.put(**{key: st.session_state[widget], f"{key}v": None, **dict.fromkeys(clears)})

    id = st.selectbox(
        label, ids, key=widget, format_func=lambda i: names.get(i, visible(str(i))), on_change=changed, width=width
    )
    asked = state.get(key)
    if asked and asked != id:
        panels.note(f"<b>{escape(clip(asked, 80))}</b> is not in this workspace; showing <b>{escape(id)}</b>.", "warn")
        state.put(**{f"{key}v": None})
    state.put(**{key: id})
    return next(e for e in entries if e.id == id)


def check_version(entry: Entry, key: str) -> None:
    """Warn where the address was made on another version of ``entry``; else write the version into the address."""
    asked = state.get(f"{key}v")
    if not asked or asked == entry.version:
        state.put(**{f"{key}v": entry.version})
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        panels.note(
            f"This link was made on data version <code>{escape(clip(asked, 16))}</code> of {escape(entry.id)}; "
            f"the workspace now holds <code>{escape(entry.version)}</code>.",
            "broken",
        )
        st.button("Use the data at hand", on_click=state.put, kwargs={f"{key}v": entry.version}, key=f"wb_use_{key}")
