"""Two tags, so that pages read as structure. What goes in is markup: text is escaped by :mod:`workbench.markup.tokens`
before.
"""

from __future__ import annotations


def div(css: str, *inner: str, attrs: str = "") -> str:
    """``<div class="css" attrs>inner…</div>``."""
    return f'<div class="{css}"{" " + attrs if attrs else ""}>{"".join(inner)}</div>'


def span(css: str, *inner: str) -> str:
    """``<span class="css">inner…</span>``."""
    return f'<span class="{css}">{"".join(inner)}</span>'
