"""The selection lives in the address: dictionary ``d``, latent ``i``, data version ``v``, and each page's own keys.

The address is read afresh on every run, so the back button works; nothing in it is trusted: ids are looked up, numbers
are parsed and clamped, everything is clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from workbench_ui.kit.index import Dictionary, Index

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
    """Write values into the address at once; None removes a key. Unchanged values cost nothing."""
    was = st.query_params.to_dict()
    now = {**was, **{k: str(v) for k, v in values.items() if v is not None}}
    for key in [k for k, v in values.items() if v is None]:
        now.pop(key, None)
    if now != was:
        st.query_params.from_dict(now)


def tie(key: str, value: Any, default: Any, dump: Callable[[Any], str], clears: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments that tie a widget to ``key`` of the address: it starts from there, and what the user chooses is written
    there. A choice removes the keys in ``clears``, which spoke of what was shown before (the page of a table).

    ``value`` is what the address says (already checked). Streamlit's own ``bind`` empties the address before another
    page is opened, which is what the back button would then return to.
    """
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value

    def copy() -> None:
        chosen = st.session_state[key]
        if isinstance(default, tuple):
            if not isinstance(chosen, list | tuple) or len(chosen) != len(default):
                return  # one end alone is no range
            chosen = tuple(chosen)
        said = None if chosen is None or chosen == default else dump(chosen)
        if said != st.query_params.get(key):  # a widget that only says again what the address says has chosen nothing
            put(**{key: said, **dict.fromkeys(clears)})

    return {"key": key, "on_change": copy}


def tie_choice(key: str, options: Sequence[str], default: str, clears: Sequence[str] = ()) -> dict[str, Any]:
    """:func:`tie` for one of ``options``."""
    return tie(key, get_choice(key, options, default), default, str, clears)


def tie_many(key: str, options: Sequence[str], default: Sequence[str]) -> dict[str, Any]:
    """:func:`tie` for some of ``options``, in their order; an address that names none of them means the default."""
    asked = (get(key) or "").split(",")
    chosen = [o for o in options if o in asked] or list(default)
    return tie(key, chosen, list(default), lambda v: ",".join(o for o in options if o in v))


def tie_flag(key: str, default: bool = False, clears: Sequence[str] = ()) -> dict[str, Any]:
    """:func:`tie` for yes or no."""
    return tie(
        key,
        {"1": True, "true": True, "0": False, "false": False}.get(get(key) or "", default),
        default,
        lambda v: str(int(v)),
        clears,
    )


def tie_text(key: str, length: int, clears: Sequence[str] = ()) -> dict[str, Any]:
    """:func:`tie` for a short text."""
    return tie(key, (get(key) or "")[:length], "", str, clears)


def tie_number(key: str, lo: int, hi: int, default: int) -> dict[str, Any]:
    """:func:`tie` for a whole number within [lo, hi]."""
    found = get_int(key, lo, hi, default)
    return tie(key, default if found is None else found, default, str)


def tie_float(key: str, lo: float, hi: float, default: float) -> dict[str, Any]:
    """:func:`tie` for a number within [lo, hi]."""
    try:
        value = float(get(key) or "")
    except ValueError:
        value = default
    return tie(key, value if lo <= value <= hi else default, default, lambda v: f"{v:g}")


def tie_range(key: str, options: Sequence[Any], default: tuple[Any, Any], clears: Sequence[str] = ()) -> dict[str, Any]:
    """:func:`tie` for a range between two of ``options``, written ``low_high``."""
    known = {str(o): o for o in options}
    lo, _, hi = (get(key) or "").partition("_")
    asked = (
        (known[lo], known[hi])
        if lo in known and hi in known and options.index(known[lo]) <= options.index(known[hi])
        else default
    )
    return tie(key, asked, default, lambda v: "_".join(map(str, v)), clears)


def tie_span(
    key: str, lo: float, hi: float, default: tuple[float, float], clears: Sequence[str] = ()
) -> dict[str, Any]:
    """:func:`tie` for a range of numbers within [lo, hi], written ``low_high``."""
    low, _, high = (get(key) or "").partition("_")
    try:
        asked = (float(low), float(high))
    except ValueError:
        asked = default
    fits = lo <= asked[0] <= asked[1] <= hi
    return tie(key, asked if fits else default, default, lambda v: f"{v[0]:g}_{v[1]:g}", clears)


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
