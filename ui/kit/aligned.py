"""Two latents on the same text, in the browser: colour is A, underline is B, and B can be read a few tokens later at
once.

One message carries both activations of every token; hovering, the shift and the marks on the joint histogram need no
server. The chosen shift is told to the server afterwards, which then recomputes the statistics. Tokens are made visible
on the server and enter the page as text nodes only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import streamlit as st

from workbench.markup.tokens import visible
from workbench.results.matches import Strip

SHIFTS = (-2, -1, 0, 1, 2)
_HTML = """
<div class="pair">
  <div class="bar"><span class="say">B read <b></b></span><span class="keys" role="group" aria-label="tokens by which B is read later"></span>
  <output aria-live="polite"></output></div>
  <div class="rows"></div>
</div>
"""
_CSS = """
.pair { font-family: var(--st-font); color: var(--st-text-color); font-size: 13px; }
.bar { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: center; min-height: 32px; margin-bottom: 4px; }
.bar output { font-family: var(--st-code-font); font-size: 12px; font-variant-numeric: tabular-nums; }
.keys { display: inline-flex; } .keys button { font: inherit; color: inherit; background: transparent; border: 1px solid var(--st-border-color); padding: 3px 11px; cursor: pointer; margin-left: -1px; }
.keys button:first-child { border-radius: 6px 0 0 6px; margin-left: 0; } .keys button:last-child { border-radius: 0 6px 6px 0; }
.keys button[aria-pressed=true] { background: var(--st-secondary-background-color); font-weight: 700; }
.row { display: grid; grid-template-columns: 72px 1fr; gap: 12px; padding: 5px 0; border-top: 1px solid var(--st-border-color); }
.row .m { text-align: right; font-size: 12px; opacity: .8; font-variant-numeric: tabular-nums; }
.row .c { font-family: var(--st-code-font); line-height: 1.75; white-space: break-spaces; overflow-wrap: anywhere; unicode-bidi: isolate; }
.row .c span { border-radius: 2px; border-bottom: 0 solid #0072b2; cursor: default; } .row .c .pk { outline: 1.5px solid currentColor; }
.row .c span:hover { outline: 1.5px dashed currentColor; }
"""
_JS = """
export default function (component) {
  const { data, parentElement, setStateValue } = component
  const root = parentElement.querySelector('.pair'), rows = root.querySelector('.rows'), keys = root.querySelector('.keys')
  const out = root.querySelector('output'), say = root.querySelector('.say b')
  const shade = (k) => {  // the ramp of every other page, in the theme at hand
    const level = Math.min(8, Math.floor(9 * k))
    return ['var(--t' + level + ')', level < 5 ? 'var(--tlo)' : 'var(--thi)']
  }
  rows.replaceChildren()
  const painted = data.strips.map((c) => {
    const row = document.createElement('div'); row.className = 'row'
    const meta = document.createElement('div'); meta.className = 'm'; meta.textContent = c.place
    const text = document.createElement('div'); text.className = 'c'
    const spans = c.tokens.map((t, j) => {
      const span = document.createElement('span'); span.textContent = t
      if (j === c.peak) span.className = 'pk'
      if (c.a[j] > 0) { const [back, ink] = shade(Math.min(1, c.a[j] / data.top[0])); span.style.background = back; span.style.color = ink }
      text.append(span); return span
    })
    row.append(meta, text); rows.append(row)
    return { ...c, spans }
  })
  let shift = data.shift
  const number = (v) => v > 0 ? v.toPrecision(3) : 'silent'
  const moved = (c, j) => c.b[j + data.pad + shift] ?? 0
  const words = (s) => s === 0 ? 'on the same token' : Math.abs(s) + ' token' + (Math.abs(s) > 1 ? 's' : '') + (s > 0 ? ' later' : ' earlier')
  const paint = () => {
    say.textContent = words(shift)
    ;[...keys.children].forEach((b) => b.setAttribute('aria-pressed', +b.dataset.s === shift))
    for (const c of painted) c.spans.forEach((span, j) => {
      const v = moved(c, j)
      span.style.borderBottomWidth = v > 0 ? [1.5, 3, 4.5][Math.min(2, Math.floor(3 * v / data.top[1]))] + 'px' : '0'
    })
  }
  keys.replaceChildren(...data.shifts.map((s) => {
    const b = document.createElement('button'); b.type = 'button'; b.dataset.s = s; b.textContent = (s > 0 ? '+' : '') + s
    b.onclick = () => { shift = s; paint(); setStateValue('shift', s) }
    return b
  }))
  const grid = () => document.querySelector('.joint .grid')
  const mark = (a, b) => {
    const cells = grid()?.children
    if (!cells) return
    for (const cell of cells) cell.style.outline = ''
    if (a === null) return
    const bin = (v, top) => Math.max(0, Math.min(31, Math.ceil(v / (top || 1) * 31)))
    const cell = cells[(31 - bin(b, data.joint[1])) * 32 + bin(a, data.joint[0])]
    if (cell) cell.style.outline = '2px solid #d55e00'
  }
  rows.onmouseover = (event) => {
    for (const c of painted) {
      const j = c.spans.indexOf(event.target)
      if (j < 0) continue
      out.textContent = 'A ' + number(c.a[j]) + ' · B ' + number(moved(c, j)) + ' · position ' + (c.start + j)
      return mark(c.a[j], moved(c, j))
    }
  }
  rows.onmouseleave = () => { out.textContent = ''; mark(null) }
  paint()
}
"""


@st.cache_resource(show_spinner=False)
def _component() -> Callable[..., Any]:
    return st.components.v2.component("workbench_aligned", html=_HTML, css=_CSS, js=_JS)


def message(
    strips: Sequence[Strip], tops: tuple[float, float], joint: tuple[float, float], length: int, *, shift: int = 0
) -> dict[str, Any]:
    """Everything the browser needs. ``strips`` are unshifted and two tokens wider than shown, so that a shift finds its
    tokens.

    ``tops`` are the activations of the strongest colour and the thickest line, ``joint`` those of the joint histogram's
    last bins; ``length`` is that of a sequence.
    """
    pad = max(SHIFTS)
    shown = []
    for s in strips:
        lo, hi = (pad if s.start > 0 else 0), len(s.tokens) - (pad if s.start + len(s.tokens) < length else 0)
        b = np.zeros(hi - lo + 2 * pad)
        first = max(0, lo - pad)
        part = np.asarray(s.acts_b[first : hi + pad])
        b[first - (lo - pad) : first - (lo - pad) + len(part)] = part
        shown.append(
            {
                "tokens": [visible(t) for t in s.tokens[lo:hi]],
                "a": [round(float(v), 5) for v in s.acts_a[lo:hi]],
                "b": [round(float(v), 5) for v in b],
                "peak": s.peak - lo,
                "start": s.start + lo,
                "place": f"{s.seq}:{s.start + s.peak}",
            }
        )
    return {
        "strips": shown,
        "top": [t or 1.0 for t in tops],
        "joint": list(joint),
        "shifts": list(SHIFTS),
        "shift": shift,
        "pad": pad,
    }


def aligned(data: dict[str, Any], key: str) -> None:
    """Mount the strips; the chosen shift is in ``st.session_state[key].shift``."""
    _component()(key=key, data=data, on_shift_change=lambda: None)


def chosen_shift(key: str) -> int:
    """The shift that was chosen last, 0 before."""
    found = getattr(st.session_state.get(key), "shift", None)
    return int(found) if isinstance(found, int | float) and int(found) in SHIFTS else 0
