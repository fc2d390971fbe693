"""One result of a kind, chosen by a selector and kept in the address: what every analysis page starts with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from ui.kit import data, panels, state
from ui.kit.index import Entry
from workbench.markup.tokens import visible


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

    Choosing another one removes the keys in ``clears``, which spoke of the one before.
    """
    entries = data.index().of(kind)
    if not entries:
        panels.not_computed(what, f"workbench {command} --workspace {data.workspace_folder().name}", why)
        return None
    ids = [e.id for e in entries]
    widget = f"wb_{key}_choice"
    st.session_state[widget] = state.get_choice(key, ids, ids[0])
    names = {e.id: text(e) for e in entries}

    def changed() -> None:
        state.put(**{key: st.session_state[widget], **dict.fromkeys(clears)})

    id = st.selectbox(label, ids, key=widget, format_func=lambda i: names.get(i, visible(str(i))), on_change=changed, width=width)
    state.put(**{key: id})
    return next(e for e in entries if e.id == id)
