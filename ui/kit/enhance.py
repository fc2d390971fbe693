"""Behaviour in the browser without a server round trip: hovering a token draws its value on the histogram, and links to
latents change the page in place. Pages work without it (links are real addresses, values are in the table).
"""

from __future__ import annotations

import html
from collections.abc import Callable
from urllib.parse import urlencode

import streamlit as st

from ui.kit import state
from ui.kit.index import Dictionary

_JS = """
export default function (component) {
  const { setTriggerValue } = component
  const cursor = (value) => {
    document.querySelectorAll('.hist').forEach((hist) => {
      const line = hist.querySelector('.cursor')
      if (!line) return
      const lo = Math.log(+hist.dataset.lo), hi = Math.log(+hist.dataset.hi)
      const at = value > 0 ? (Math.log(value) - lo) / (hi - lo) : NaN
      line.style.display = Number.isFinite(at) ? 'block' : 'none'
      if (Number.isFinite(at)) line.style.left = 100 * Math.min(1, Math.max(0, at)) + '%'
    })
  }
  const over = (event) => {
    const token = event.target.closest && event.target.closest('.ctx [data-x]')
    cursor(token ? +token.dataset.x : NaN)
  }
  const click = (event) => {
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return
    const link = event.target.closest && event.target.closest('a[data-latent]')
    if (!link) return
    event.preventDefault()
    setTriggerValue('open', { d: link.dataset.dictionary || '', i: link.dataset.latent })
  }
  document.addEventListener('mouseover', over)
  document.addEventListener('click', click)
  return () => {
    document.removeEventListener('mouseover', over)
    document.removeEventListener('click', click)
  }
}
"""


@st.cache_resource(show_spinner=False)
def _component() -> Callable[..., object]:
    return st.components.v2.component("workbench_enhance", js=_JS)


def enhance(key: str = "wb_enhance", *, here: bool = False) -> None:
    """Mount the behaviour once on a page.

    A clicked latent link opens the latent's page, or with ``here`` changes this one.
    """
    mounted = _component()(key=key, on_open_change=(lambda: _clicked_here(key)) if here else (lambda: None), height=1)
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
