"""Behaviour in the browser without a server round trip: hovering a token draws its value on the histogram, commands are
copied, rows act as their link, and links change the page in place. Pages work without it (links are real addresses,
values are in the table).

Three kinds of link: to a latent (:func:`latent_link`), to a page with an address (:func:`page_link`), and one that
changes some keys of this page's address (:func:`put_link`).
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, urlencode

import streamlit as st

from workbench_ui.components import mount
from workbench_ui.kit import state
from workbench_ui.kit.index import Dictionary
from workbench_ui.kit.pages import STEMS


def enhance(key: str = "wb_enhance", *, here: bool = False, puts: Sequence[str] = ()) -> None:
    """Mount the behaviour once on a page, inside its fragment.

    A clicked latent link opens the latent's page, or with ``here`` changes this one. Links of :func:`put_link` change
    the keys named in ``puts`` and no others.
    """
    mounted = mount("enhance")(
        key=key,
        data={"page": True},
        on_open_change=(lambda: _clicked_here(key)) if here else (lambda: None),
        on_put_change=lambda: _put(key, puts),
        on_go_change=lambda: None,
        height=1,
    )
    _leave(mounted, opens=not here)


def links() -> None:
    """The same for what stands around the pages; mounted once per visit, and silent where the page has answered."""
    _leave(
        mount("enhance")(
            key="wb_links",
            data={"page": False},
            on_open_change=lambda: None,
            on_put_change=lambda: None,
            on_go_change=lambda: None,
            height=1,
        ),
        opens=True,
    )


def _leave(mounted: object, *, opens: bool) -> None:
    """Go where a clicked link leads, if it leads to another page."""
    clicked = getattr(mounted, "open", None) if opens else None
    if clicked:
        d = find_dictionary(str(clicked.get("d") or ""))
        if d is not None and _is_latent(str(clicked.get("i"))):
            st.switch_page("app_pages/latent.py", query_params=state.link(d, i=int(clicked["i"])))
    went = getattr(mounted, "go", None)
    if went and went.get("page") in STEMS:
        query = dict(parse_qsl(str(went.get("query") or "").lstrip("?")))
        st.switch_page(f"app_pages/{went['page']}.py", query_params=query)


def _clicked_here(key: str) -> None:
    clicked = getattr(st.session_state.get(key), "open", None) or {}
    open_latent(str(clicked.get("d") or ""), str(clicked.get("i") or ""))


def _put(key: str, allowed: Sequence[str]) -> None:
    asked = getattr(st.session_state.get(key), "put", None) or {}
    state.put(**{k: None if v is None else str(v)[: state.MAX_LENGTH] for k, v in asked.items() if k in allowed})


def find_dictionary(id: str) -> Dictionary | None:
    """The dictionary a link names, or the selected one where it names none; None for anything else."""
    from workbench_ui.kit import data

    return data.index().dictionaries.get(id or state.get("d") or "")


def _is_latent(text: str) -> bool:
    return text.isdecimal() and len(text) < 12


def open_latent(dictionary: str, latent: str) -> None:
    """Select a latent by id; strings that are no such thing change nothing."""
    d = find_dictionary(dictionary)
    if d is not None and _is_latent(latent):
        state.put(d=d.id, v=d.version, i=int(latent))


def latent_link(d: Dictionary, latent: int, text_html: str | None = None, **more: str) -> str:
    """An HTML link to a latent: in place where scripts run, by address otherwise and in a new tab. With ``more`` keys
    it is a link to the page with those in its address.
    """
    href = "latent?" + urlencode(state.link(d, i=latent, **more))
    attrs = f'href="{html.escape(href)}" target="_self"'
    attrs += ' data-page="latent"' if more else f' data-dictionary="{html.escape(d.id)}" data-latent="{latent}"'
    return f"<a {attrs}>{text_html or f'#{latent}'}</a>"


def page_link(page: str, text_html: str, query: Mapping[str, object] | None = None, css: str = "") -> str:
    """An HTML link to a page of the program with an address; ``text_html`` is markup."""
    asked = {k: str(v) for k, v in (query or {}).items() if v is not None}
    href = page if page != "overview" else "/"
    href += f"?{urlencode(asked)}" if asked else ""
    style = f' class="{css}"' if css else ""
    return f'<a{style} href="{html.escape(href)}" data-page="{page}" target="_self">{text_html}</a>'


def put_link(text_html: str, keys: Mapping[str, object], *, label: str = "", css: str = "") -> str:
    """An HTML link that changes keys of this page's address; None removes one. Without scripts it is that address."""
    there = st.query_params.to_dict()
    after = {k: str(v) for k, v in {**there, **keys}.items() if v is not None}
    say = html.escape(json.dumps({k: None if v is None else str(v) for k, v in keys.items()}), quote=True)
    extra = (f' aria-label="{html.escape(label)}"' if label else "") + (f' class="{css}"' if css else "")
    return f'<a href="?{html.escape(urlencode(after))}" data-put="{say}"{extra} target="_self">{text_html}</a>'
