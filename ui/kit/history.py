"""The back button: one entry of the browser's history per page and state, complete and no more.

Streamlit makes an entry for every write to the address. A page that is opened writes what it shows (dictionary, latent,
data version) one by one, and on the way to another page the new page's values are first written behind the old page's
path. Going back would lead through all of that. So a write that only completes the address replaces the entry, and one
that belongs to the page to come is left to that page's own entry, which holds it anyway. After a step back, until the
reader does something, nothing that is written can be a step
on: what the server still owed from the page before is left out, however late it comes.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

COMPLETED = {  # the keys that a page writes by itself
    "results": ("c", "cv"),
    "latents": ("d", "v"),
    "latent": ("d", "v", "i"),
    "probe": ("d", "v"),
    "mppc": ("m", "mv"),
    "pair": ("m", "mv", "d", "i", "d2", "i2"),
    "training": ("ev", "evv", "ls"),
    "induction": ("tf", "tfv", "mb", "mbv", "task", "met"),
    "graph": ("gr", "grv"),
    "map": ("map", "mapv"),
    "export": ("f", "src"),
}
LASTING = ("d", "f", "m", "ev", "gr", "map", "c", "tf", "mb")  # keys that no page takes away while one stays on it

_JS = """
export default function (component) {
  if (window.__workbenchHistory) return
  window.__workbenchHistory = true
  const completed = component.data.completed, lasting = component.data.lasting, known = new Set(Object.values(completed).flat())
  const push = window.history.pushState.bind(window.history)
  let back = false
  window.addEventListener('popstate', () => { back = true })
  for (const act of ['pointerdown', 'keydown']) window.addEventListener(act, () => { back = false }, true)
  window.history.pushState = (state, title, url) => {
    const was = new URL(window.location.href), next = new URL(url, was)
    const a = was.searchParams, b = next.searchParams
    if (next.pathname !== was.pathname) return push(state, title, url)
    const added = [...b.keys()].filter((k) => !a.has(k)), removed = [...a.keys()].filter((k) => !b.has(k))
    const changed = [...a].some(([k, v]) => b.has(k) && b.get(k) !== v), kept = !removed.length && !changed
    const had = lasting.filter((k) => a.has(k))
    const mine = completed[next.pathname.split('/').pop()] || []
    const fewer = !added.length && !changed && removed.some((k) => known.has(k))
    const others = added.some((k) => known.has(k) && !mine.includes(k))
    const leaving = fewer || others || (had.length > 0 && !had.some((k) => b.has(k)))
    if (leaving || (kept && !added.length) || (back && !kept)) return
    return kept && (back || added.every((k) => known.has(k))) ? window.history.replaceState(state, title, url) : push(state, title, url)
  }
}
"""


@st.cache_resource(show_spinner=False)
def _component() -> Callable[..., object]:
    return st.components.v2.component("workbench_history", js=_JS)


def tidy_history() -> None:
    """Mount the behaviour; once per visit is enough, more do no harm."""
    _component()(
        key="wb_history",
        data={"completed": {k: list(v) for k, v in COMPLETED.items()}, "lasting": list(LASTING)},
        height=1,
    )
