"""Behaviour in the browser without a server round trip: hovering a token draws its value on the histogram, and links to
latents change the page in place. Pages work without it (links are real addresses, values are in the table).
"""

from __future__ import annotations

import html
from urllib.parse import urlencode

import streamlit as st

from ui.components import mount
from ui.kit import state
from ui.kit.index import Dictionary


def enhance(key: str = "wb_enhance", *, here: bool = False) -> None:
    """Mount the behaviour once on a page.

    A clicked latent link opens the latent's page, or with ``here`` changes this one.
    """
    mounted = mount("enhance")(
        key=key, on_open_change=(lambda: _clicked_here(key)) if here else (lambda: None), height=1
    )
    clicked = None if here else getattr(mounted, "open", None)
    if clicked:
        d = find_dictionary(str(clicked.get("d") or ""))
        if d is not None and _is_latent(str(clicked.get("i"))):
            st.switch_page("app_pages/latent.py", query_params=state.link(d, i=int(clicked["i"])))


def _clicked_here(key: str) -> None:
    clicked = getattr(st.session_state.get(key), "open", None) or {}
    open_latent(str(clicked.get("d") or ""), str(clicked.get("i") or ""))


def find_dictionary(id: str) -> Dictionary | None:
    """The dictionary a link names, or the selected one where it names none; None for anything else."""
    from ui.kit import data

    return data.index().dictionaries.get(id or state.get("d") or "")


def _is_latent(text: str) -> bool:
    return text.isdecimal() and len(text) < 12


def open_latent(dictionary: str, latent: str) -> None:
    """Select a latent by id; strings that are no such thing change nothing."""
    d = find_dictionary(dictionary)
    if d is not None and _is_latent(latent):
        state.put(d=d.id, v=d.version, i=int(latent))


def latent_link(d: Dictionary, latent: int, text_html: str | None = None) -> str:
    """An HTML link to a latent: in place where scripts run, by address otherwise and in a new tab."""
    href = "latent?" + urlencode(state.link(d, i=latent))
    attrs = f'href="{html.escape(href)}" data-dictionary="{html.escape(d.id)}" data-latent="{latent}" target="_self"'
    return f"<a {attrs}>{text_html or f'#{latent}'}</a>"
