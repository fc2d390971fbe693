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


def enhance(key: str = "wb_enhance") -> None:
    """Mount the behaviour once on a page; a clicked latent link selects it through the address."""

    def opened() -> None:
        clicked = getattr(st.session_state.get(key), "open", None) or {}
        open_latent(str(clicked.get("d") or ""), str(clicked.get("i") or ""))

    _component()(key=key, on_open_change=opened, height=1)


def open_latent(dictionary: str, latent: str) -> None:
    """Select a latent by id; strings that are no such thing change nothing."""
    from ui.kit import data

    known = data.index().dictionaries
    d = known.get(dictionary or state.get("d") or "")
    if d is not None and latent.isdecimal() and len(latent) < 12:
        state.put(d=d.id, v=d.version, i=int(latent))


def latent_link(d: Dictionary, latent: int, text_html: str | None = None) -> str:
    """An HTML link to a latent: in place where scripts run, by address otherwise and in a new tab."""
    href = "latent?" + urlencode(state.link(d, i=latent))
    attrs = f'href="{html.escape(href)}" data-dictionary="{html.escape(d.id)}" data-latent="{latent}" target="_self"'
    return f"<a {attrs}>{text_html or f'#{latent}'}</a>"
