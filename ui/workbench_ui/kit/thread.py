"""The thread through the pages: the latent looked at last, the pinned one, and the bar "A ⇄ B" on every page.

A is the latent at hand, or the last one; B is the pinned latent, else the twin of A in another model. Both are kept in
the session, so that a click in the menu does not forget them; the address wins where it names one.
"""

from __future__ import annotations

import streamlit as st

from workbench.markup.glossary import term
from workbench.markup.tags import div, span
from workbench.markup.tokens import cell, clip, escape, visible
from workbench_ui.components.enhance import latent_link, page_link
from workbench_ui.kit import data, state
from workbench_ui.kit.facts import twin_of
from workbench_ui.kit.index import Dictionary, Entry, Index, architecture_css


def remember(d: Dictionary, latent: int) -> None:
    """The latent at hand, for the other pages."""
    st.session_state["last_latent"] = (d.id, latent)


def last(index: Index) -> tuple[Dictionary, int] | None:
    """The latent looked at last, if the workspace still has it."""
    id, latent = st.session_state.get("last_latent") or ("", 0)
    d = index.dictionaries.get(id)
    return (d, latent) if d is not None else None


def last_of(d: Dictionary) -> int | None:
    """The number of the latent looked at last, if it is this dictionary's."""
    id, latent = st.session_state.get("last_latent") or ("", 0)
    return latent if id == d.id else None


def pinned(index: Index) -> tuple[Dictionary, int] | None:
    """The pinned latent, if the workspace has its dictionary: that of the address, else that of the session."""
    asked = state.get("p")
    if asked:
        st.session_state["pin"] = asked
    id, _, latent = str(asked or st.session_state.get("pin") or "").rpartition(":")
    d = index.dictionaries.get(id)
    return (d, int(latent)) if d is not None and latent.isdecimal() and len(latent) < 10 else None


def _pin(value: str | None) -> None:
    st.session_state["pin"] = value
    state.put(p=value)


def pin_button(d: Dictionary, latent: int) -> None:
    """Pin the latent at hand, or unpin it."""
    here = pinned(data.index()) == (d, latent)
    st.button(
        "Unpin" if here else "Pin",
        icon=":material/keep_off:" if here else ":material/keep:",
        key="wb_pin",
        shortcut="P",
        help="Keep this latent as B of the bar on top, on every page, and compare others with it",
        on_click=_pin,
        args=(None if here else f"{d.id}:{latent}",),
    )


def comparison_of(index: Index, a: str, b: str) -> Entry | None:
    """A comparison with one dictionary on each side, whichever way round."""
    for e in index.of("matches"):
        sides = [set((e.metadata.get(side) or {}).get("dictionaries") or ()) for side in "ab"]
        if (a in sides[0] and b in sides[1]) or (a in sides[1] and b in sides[0]):
            return e
    return None


def bar() -> None:
    """A ⇄ B with the links there, in one line; nothing before a latent was looked at."""
    index = data.index()
    a, b = last(index), pinned(index)
    if a is None:
        return
    said, entry = "", None
    if b is not None and b != a:
        entry = comparison_of(index, a[0].id, b[0].id)
        said = span("k", "pinned")
    else:
        b = None
        twin = twin_of(*a)
        if twin is not None:
            b, entry = (twin.dictionary, twin.latent), twin.comparison
            said = span("k", f"its {term('twin')}, {term('r')} {twin.r:.2f}")
    parts = [span("ab", "A"), _named(*a)]
    if b is not None:
        parts += [span("x", "⇄"), span("ab", "B"), _named(*b), said]
        if entry is not None:
            where = {"m": entry.id, "d": a[0].id, "i": a[1], "d2": b[0].id, "i2": b[1], "mv": entry.version}
            parts.append(page_link("pair", "both on the same tokens →", where, css="go"))
        elif b[0].id != a[0].id:
            parts.append(span("k", "no comparison holds both dictionaries"))
    st.html(div("wb-thread", *parts, attrs='role="navigation" aria-label="The latents at hand"'))


def _named(d: Dictionary, latent: int) -> str:
    """Model, place and number of a latent as a link, and what it fires on."""
    about = words_of(d, latent, 34)
    css = architecture_css(d.architecture)
    link = latent_link(d, latent, f"{escape(short(d))} #{latent:,}")
    return span("one", f'<i class="{css}" aria-hidden="true"></i>{link}' + (span("w", escape(about)) if about else ""))


def short(d: Dictionary) -> str:
    """A dictionary in a few words: the model, and the layer."""
    from workbench.markup.names import model_name

    where = f"layer {d.layer}" if d.layer >= 0 else d.site
    when = f" at {d.revision}" if d.revision != "final" else ""
    return visible(f"{model_name(d.model)}{when} {where}".strip())


def words_of(d: Dictionary, latent: int, length: int = 60) -> str:
    """The label of a latent, else the token on which it fires most, as plain text; empty where neither is known."""
    from sae.errors import UserError

    try:
        records = data.records(d)
        row = records.row(latent) if records is not None else {}
    except (UserError, OSError, ValueError):
        return ""
    label, peak = row.get("label"), row.get("peak_text")
    if isinstance(label, str) and label.strip():
        return clip(visible(" ".join(label.split())), length)
    return cell(peak, length) if isinstance(peak, str) else ""
