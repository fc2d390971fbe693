"""Tokens as text a person can read and a browser cannot execute: the only place that turns a token into markup.

Invisible, control, private and direction-changing characters become visible signs, so a token never moves, hides or
restyles anything around it; then the text is escaped for HTML. :func:`visible` alone is enough where the sink shows
text literally (table cells); :func:`strip` draws a context with its activations.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from workbench.markup.text import visible as text_visible

LEVELS = 9


@lru_cache(maxsize=200_000)
def visible(token: str) -> str:
    """``token`` with every invisible or direction-changing character replaced by a sign or ``⟨U+XXXX⟩``.

    Not escaped.
    """
    text = text_visible(token)
    return "◌" + text if text and unicodedata.category(text[0]) in ("Mn", "Me") else text


@lru_cache(maxsize=200_000)
def escape(token: object) -> str:
    """Text for HTML: :func:`visible`, then escaped, quotes included. Also right for Plotly labels, which are HTML."""
    return html.escape(visible(str(token)), quote=True)


def cell(token: str, length: int = 40) -> str:
    """One token on its own as text: everything visible, spaces at its ends as ``␣`` (many as ``␣×8``), clipped."""
    text = visible(token)
    body = text.strip(" ")
    lead = len(text) - len(text.lstrip(" "))
    trail = len(text) - len(text.rstrip(" ")) if body else 0
    return clip(_spaces(lead) + body + _spaces(trail), length)


def _spaces(n: int) -> str:
    return "␣" * n if n < 4 else f"␣×{n}"


@lru_cache(maxsize=200_000)
def chip(token: str) -> str:
    """:func:`cell` as HTML in a small frame, so that " the" differs from "the"."""
    return f'<span class="wb-tok">{html.escape(cell(token), quote=True) or "∅"}</span>'


def markdown(text: object) -> str:
    """Text for places Streamlit reads as markdown (labels, captions): nothing in it is markup, link,
    icon or formula.
    """
    out = []
    for c in visible(str(text)):
        out.append(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$^&" else ":\u2060" if c == ":" else c)
    return "".join(out)


def clip(text: str, length: int) -> str:
    """At most ``length`` characters, the last of them an ellipsis where something was cut."""
    return text if len(text) <= length else text[: max(1, length - 1)] + "…"


def level(value: float, vmax: float) -> int:
    """Which of the :data:`LEVELS` steps of the linear ramp a positive value takes."""
    if not (vmax > 0 and math.isfinite(vmax) and math.isfinite(value)):
        return 0
    return max(0, min(LEVELS - 1, int(LEVELS * min(1.0, value / vmax))))


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: significant digits, thin thousands, ``–`` where it was not computed."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:,.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.{max(0, digits - 1)}e}"


def strip(
    tokens: Sequence[str],
    acts: Sequence[float],
    vmax: float,
    *,
    peak: int | None = None,
    start: int = 0,
    window: int | None = None,
    breaks: bool = False,
    marker: str = "b",
    under: Sequence[float] | None = None,
    under_max: float = 0.0,
) -> str:
    """A context as one HTML row: active tokens in a colour step with their value on hover, runs of inactive ones
    merged.

    Args:
        tokens: display strings, length T.
        acts: activations, length T; not-positive and NaN count as inactive.
        vmax: activation of the strongest colour (the corpus maximum, so that rows compare).
        peak: index outlined; colour alone never carries meaning.
        start: position of the first token in its sequence, shown on hover.
        window: keep only this many tokens on each side of the peak.
        breaks: start a new line at newline tokens.
        marker: unused tag letter kept to ``b`` or ``i``, so that two dictionaries can be told apart.
        under: second activations, drawn as underline thickness (never as a second hue).
        under_max: activation of the thickest underline.
    """
    lo, hi = (
        (0, len(tokens))
        if window is None or peak is None
        else (max(0, peak - window), min(len(tokens), peak + window + 1))
    )
    row: list[str] = ['<span class="cut">…</span>'] if lo else []
    for j in range(lo, hi):
        value, second = float(acts[j]), float(under[j]) if under is not None else 0.0
        text = escape(tokens[j])
        if breaks and "\n" in tokens[j]:
            text += "<br>"
        if value > 0 or second > 0 or j == peak:
            classes = [f"t{level(value, vmax)}"] if value > 0 else []
            if second > 0:
                classes.append(f"u{1 + level(second, under_max) * 3 // LEVELS}")
            if j == peak:
                classes.append("pk")
            hover = f"{number(value)}" if under is None else f"A {number(value)} · B {number(second)}"
            row.append(
                f'<{marker} class="{" ".join(classes)}" data-v="{hover} · pos {start + j}"'
                f' data-x="{value:.6g}">{text}</{marker}>'
            )
        else:
            row.append(text)
    if hi < len(tokens):
        row.append('<span class="cut">…</span>')
    return '<div class="ctx">' + "".join(row) + "</div>"
