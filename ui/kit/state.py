"""The selection lives in the address: dictionary ``d``, latent ``i``, data version ``v``, and each page's own keys.

The address is read afresh on every run, so the back button works; nothing in it is trusted: ids are looked up, numbers
are parsed and clamped, everything is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from ui.kit.index import Dictionary, Index

MAX_LENGTH = 400


def get(key: str) -> str | None:
    """A value of the address, clipped to :data:`MAX_LENGTH` characters."""
    value = st.query_params.get(key)
    return value[:MAX_LENGTH] if value else None


def get_int(key: str, lo: int, hi: int, default: int | None = None) -> int | None:
    """A whole number of the address within [lo, hi]; anything else is the default."""
    try:
        value = int(get(key) or "")
    except ValueError:
        return default
    return value if lo <= value <= hi else default


def get_choice(key: str, options: Sequence[str], default: str) -> str:
    """One of ``options``, or the default."""
    value = get(key)
    return value if value is not None and value in options else default


def put(**values: Any) -> None:
    """Write values into the address; None removes a key. Unchanged values cost nothing."""
    for key, value in values.items():
        if value is None:
            if key in st.query_params:
                del st.query_params[key]
        elif st.query_params.get(key) != str(value):
            st.query_params[key] = str(value)


def remember(key: str, parse: Callable[[str], Any]) -> Callable[[], None]:
    """A callback that copies the widget ``key`` into the address (``parse`` may drop a default by returning None)."""

    def copy() -> None:
        put(**{key.removeprefix("w_"): parse(st.session_state[key])})

    return copy


def choose(**values: Any) -> None:
    """Callback for links and buttons: select a dictionary or latent."""
    put(**values)


def current(index: Index) -> Dictionary | None:
    """The selected dictionary: the address, else the last one of this session, else the first with records."""
    known = index.dictionaries
    for id in (get("d"), st.session_state.get("last_dictionary")):
        if id in known:
            st.session_state["last_dictionary"] = id
            return known[id]
    middle = max((d.layer for d in known.values()), default=0) / 2

    def newcomer(d: Dictionary) -> tuple[bool, bool, bool, float]:
        return d.records is not None, d.revision == "final", d.architecture == "Transformer", -abs(d.layer - middle)

    found = max(known.values(), key=newcomer, default=None)
    if found is not None:
        st.session_state["last_dictionary"] = found.id
    return found


def link(d: Dictionary, **more: Any) -> dict[str, str]:
    """Query parameters of a deep link, with the data version it was made on."""
    return {"d": d.id, "v": d.version, **{k: str(v) for k, v in more.items() if v is not None}}
