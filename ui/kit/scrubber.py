"""Training in the browser: the same contexts repainted for every snapshot, without a server round trip.

One message carries all snapshots (uint8, a few hundred kB); a native range input steps through them. Tokens are made
visible on the server and enter the page as text nodes only.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from workbench.markup.tokens import visible
from workbench.results.evolution import SnapshotContext

LIMIT = 12  # contexts

_HTML = """
<div class="scrub">
  <div class="bar"><label for="at">Snapshot</label><input id="at" type="range" min="0" max="0" step="1" value="0">
  <output></output><button type="button">play</button></div>
  <div class="curve"></div>
  <div class="rows"></div>
</div>
"""

_CSS = """
.scrub { font-family: var(--st-font); color: var(--st-text-color); font-size: 13px; }
.bar { display: flex; gap: 12px; align-items: center; flex-wrap: wrap; }
.bar input { flex: 1 1 240px; accent-color: var(--st-primary-color); }
.bar output { min-width: 190px; font-variant-numeric: tabular-nums; font-weight: 600; }
.bar button { font: inherit; color: inherit; background: var(--st-secondary-background-color); border: 1px solid var(--st-border-color); border-radius: 6px; padding: 3px 12px; cursor: pointer; }
.curve { display: flex; align-items: flex-end; gap: 2px; height: 56px; margin: 8px 0 10px; border-bottom: 1px solid var(--st-border-color); }
.curve i { flex: 1 1 0; background: color-mix(in srgb, var(--st-text-color) 35%, transparent); min-height: 1px; cursor: pointer; }
.curve i.on { background: #e69f00; }
.row { display: grid; grid-template-columns: 84px 1fr; gap: 12px; padding: 5px 0; border-top: 1px solid var(--st-border-color); }
.row .m { text-align: right; font-size: 12px; opacity: .8; font-variant-numeric: tabular-nums; }
.row .m b { display: block; font-size: 13px; }
.row .c { font-family: var(--st-code-font); line-height: 1.65; white-space: break-spaces; overflow-wrap: anywhere; unicode-bidi: isolate; }
.row .c span { border-radius: 2px; } .row .c .pk { outline: 1.5px solid currentColor; }
"""

_JS = """
export default function (component) {
  const { data, parentElement, setStateValue } = component
  const root = parentElement.querySelector('.scrub')
  const slider = root.querySelector('input'), out = root.querySelector('output'), play = root.querySelector('button')
  const rows = root.querySelector('.rows'), curve = root.querySelector('.curve')
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0))
  const S = data.snapshots.length
  slider.max = S - 1
  const shade = (v) => {  // the ramp of every other page, in the theme at hand
    if (v <= 0) return null
    const level = Math.min(8, Math.floor(9 * v / 255))
    return ['var(--t' + level + ')', level < 5 ? 'var(--tlo)' : 'var(--thi)']
  }
  rows.replaceChildren()
  const painted = data.contexts.map((c) => {
    const values = bytes(c.values), T = c.tokens.length
    const row = document.createElement('div'); row.className = 'row'
    const meta = document.createElement('div'); meta.className = 'm'
    const value = document.createElement('b'), place = document.createTextNode(c.place)
    meta.append(value, place)
    const text = document.createElement('div'); text.className = 'c'
    const spans = c.tokens.map((t, j) => {
      const span = document.createElement('span'); span.textContent = t
      if (j === c.peak) span.className = 'pk'
      text.append(span); return span
    })
    row.append(meta, text); rows.append(row)
    return { values, T, spans, value, peak: c.peak }
  })
  const top = Math.max(...data.norms, 1e-9)
  curve.replaceChildren(...data.norms.map((n, s) => {
    const bar = document.createElement('i')
    bar.style.height = Math.max(1, 100 * n / top) + '%'
    bar.title = data.snapshots[s] + ': decoder norm ' + n.toPrecision(3)
    bar.onclick = () => { slider.value = s; paint(s); setStateValue('snapshot', s) }
    return bar
  }))
  const paint = (s) => {
    out.textContent = data.snapshots[s] + ' · norm ' + data.norms[s].toPrecision(3)
    slider.setAttribute('aria-valuetext', data.snapshots[s])
    ;[...curve.children].forEach((bar, j) => bar.classList.toggle('on', j === s))
    for (const c of painted) {
      for (let t = 0; t < c.T; t++) {
        const colour = shade(c.values[s * c.T + t])
        c.spans[t].style.background = colour ? colour[0] : ''
        c.spans[t].style.color = colour ? colour[1] : ''
        const v = c.values[s * c.T + t] / 255 * data.top
        c.spans[t].title = v > 0 ? v.toPrecision(3) : ''
      }
      const v = c.values[s * c.T + c.peak] / 255 * data.top
      c.value.textContent = v > 0 ? v.toPrecision(3) : 'silent'
    }
  }
  const start = Math.min(S - 1, data.start ?? S - 1)
  slider.value = start
  paint(start)
  slider.oninput = () => paint(+slider.value)
  slider.onchange = () => setStateValue('snapshot', +slider.value)
  let timer = null
  const stop = () => { clearInterval(timer); timer = null; play.textContent = 'play' }
  play.onclick = () => {
    if (timer) return stop()
    play.textContent = 'pause'
    if (+slider.value === S - 1) slider.value = 0
    paint(+slider.value)
    timer = setInterval(() => {
      if (+slider.value >= S - 1) return stop()
      slider.value = +slider.value + 1
      paint(+slider.value)
    }, 350)
  }
  return () => clearInterval(timer)
}
"""


@st.cache_resource(show_spinner=False)
def _component() -> Callable[..., Any]:
    return st.components.v2.component("workbench_scrubber", html=_HTML, css=_CSS, js=_JS)


def message(
    contexts: list[SnapshotContext], names: list[str], norms: np.ndarray, *, start: int | None = None
) -> dict[str, Any]:
    """Everything the browser needs: readings as uint8 of ``top`` (one scale for all contexts), norms [S], names [S].

    It starts at snapshot ``start``, by default where the norm is largest.
    """
    shown = contexts[:LIMIT]
    top = max((float(c.readings.max(initial=0.0)) for c in shown), default=0.0)
    scale = 255.0 / top if top > 0 else 0.0
    return {
        "snapshots": [visible(n) for n in names],
        "norms": [round(float(n), 6) if np.isfinite(n) else 0.0 for n in norms],
        "top": top,
        "start": int(np.nanargmax(norms)) if start is None and np.isfinite(norms).any() else start,
        "contexts": [
            {
                "tokens": [visible(t) for t in c.tokens],
                "values": (
                    base64.b64encode(np.ceil(c.readings * scale).clip(0, 255).astype(np.uint8).tobytes()).decode()
                ),
                "peak": int(c.peak),
                "place": f"{c.seq}:{c.start + c.peak}",
            }
            for c in shown
        ],
    }


def scrubber(data: dict[str, Any], key: str) -> None:
    """Mount the scrubber; the snapshot that was left is kept in the session."""
    _component()(key=key, data=data, on_snapshot_change=lambda: None)


def reading_table(contexts: list[SnapshotContext], names: list[str]) -> pd.DataFrame:
    """The scrubber's numbers: one row per context, its peak token and the reading there at every snapshot."""
    rows = [
        {
            "sequence:position": f"{c.seq}:{c.start + c.peak}",
            "token": c.tokens[c.peak],
            **dict(zip(names, map(float, c.readings[:, c.peak]), strict=True)),
        }
        for c in contexts[:LIMIT]
    ]
    return pd.DataFrame(rows)
