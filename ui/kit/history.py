"""The back button: one entry of the browser's history per page and state, complete and no more.

Streamlit makes an entry for every write to the address. A page that is opened writes what it shows (dictionary, latent, data version)
one by one, and on the way to another page the new page's values are first written behind the old page's path. Going back would lead
through all of that. So a write that only completes the address replaces the entry, and one that belongs to the page to come is left
to that page's own entry, which holds it anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

COMPLETED = ("d", "i", "v", "d2", "i2", "task", "met", "f", "src", "ls")  # keys that pages complete by themselves
RESULTS = ("m", "ev", "gr", "map", "c", "tf", "mb")  # and those of results, each with its version under <key>v
LASTING = ("d", "f", *RESULTS)  # keys that no page takes away while one stays on it

_JS = """
export default function (component) {
  if (window.__workbenchHistory) return
  window.__workbenchHistory = true
  const known = new Set(component.data.keys), lasting = component.data.lasting
  const push = window.history.pushState.bind(window.history)
  window.history.pushState = (state, title, url) => {
    const was = new URL(window.location.href), next = new URL(url, was)
    const a = was.searchParams, b = next.searchParams
    if (next.pathname !== was.pathname) return push(state, title, url)
    const added = [...b.keys()].filter((k) => !a.has(k)), removed = [...a.keys()].filter((k) => !b.has(k))
    const changed = [...a].some(([k, v]) => b.has(k) && b.get(k) !== v), kept = !removed.length && !changed
    const had = lasting.filter((k) => a.has(k))
    const fewer = !added.length && !changed && removed.some((k) => known.has(k))
    const leaving = fewer || (had.length ? !had.some((k) => b.has(k)) : next.pathname.endsWith('/') && added.some((k) => known.has(k)))
    if (leaving || (kept && !added.length)) return
    return kept && added.every((k) => known.has(k)) ? window.history.replaceState(state, title, url) : push(state, title, url)
  }
}
"""


@st.cache_resource(show_spinner=False)
def _component() -> Callable[..., object]:
    return st.components.v2.component("workbench_history", js=_JS)


def tidy_history() -> None:
    """Mount the behaviour; once per visit is enough, more do no harm."""
    known = [*COMPLETED, *RESULTS, *(f"{key}v" for key in RESULTS)]
    _component()(key="wb_history", data={"keys": known, "lasting": list(LASTING)}, height=1)
