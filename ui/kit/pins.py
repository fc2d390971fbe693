"""The pinned latent: kept while one browses, and compared with the one at hand by a click.

It lives in the address (``p``).
"""

from __future__ import annotations

import streamlit as st

from ui.components.enhance import latent_link
from ui.kit import data, state
from ui.kit.index import Dictionary, Entry, Index
from workbench.markup.tags import div
from workbench.markup.tokens import escape


def pinned(index: Index) -> tuple[Dictionary, int] | None:
    """The pinned latent of the address, if the workspace has its dictionary."""
    id, _, latent = (state.get("p") or "").rpartition(":")
    d = index.dictionaries.get(id)
    return (d, int(latent)) if d is not None and latent.isdecimal() and len(latent) < 10 else None


def comparison_of(index: Index, a: str, b: str) -> Entry | None:
    """A comparison with one dictionary on each side, whichever way round."""
    for e in index.of("matches"):
        sides = [set((e.metadata.get(side) or {}).get("dictionaries") or ()) for side in "ab"]
        if (a in sides[0] and b in sides[1]) or (a in sides[1] and b in sides[0]):
            return e
    return None


def pin_button(d: Dictionary, latent: int) -> None:
    """Pin the latent at hand, or unpin it."""
    here = state.get("p") == f"{d.id}:{latent}"
    st.button(
        "Unpin" if here else "Pin",
        icon=":material/keep_off:" if here else ":material/keep:",
        key="wb_pin",
        shortcut="P",
        help="Keep this latent at hand, go on browsing, and compare",
        on_click=state.put,
        kwargs={"p": None if here else f"{d.id}:{latent}"},
    )


def pin_line(d: Dictionary, latent: int) -> None:
    """What is pinned, and the way to compare it; nothing where nothing or only the latent at hand is."""
    index = data.index()
    found = pinned(index)
    if found is None or found == (d, latent):
        return
    other, i = found
    entry = comparison_of(index, other.id, d.id)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        link = latent_link(other, i, f"latent {i:,} of {escape(other.id)}")
        how = "" if entry else " · no comparison holds both dictionaries; <code>workbench compare A B</code> makes one"
        st.html(div("wb-panel info", f"Pinned: {link}{how}"))
        if entry is not None and st.button("Compare", icon=":material/compare_arrows:", key="wb_compare"):
            where = {"m": entry.id, "d": other.id, "i": i, "d2": d.id, "i2": latent, "mv": entry.version}
            st.switch_page("app_pages/pair.py", query_params={k: str(v) for k, v in where.items()})
        st.button("Unpin", key="wb_unpin", on_click=state.put, kwargs={"p": None}, type="tertiary")
