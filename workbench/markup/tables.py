"""Tables and strips of statistics as HTML; cells are markup made by the caller, texts are escaped here."""

from __future__ import annotations

import html

from workbench.markup.glossary import header, meaning, term
from workbench.markup.tags import div


def stats(items: list[tuple[str, str, str]]) -> str:
    """A strip of statistics as HTML: (label, value, what it is over). Values are escaped here."""
    cells = (div("st", div("k", term(k)), div("v", html.escape(v)), div("n", html.escape(n))) for k, v, n in items)
    return div("wb-stats", *cells)


def table(
    headers: list[str], rows: list[list[str]], *, numeric: frozenset[int] = frozenset(), caption: str = ""
) -> str:
    """An HTML table; cells are HTML made by the caller (tokens through :mod:`workbench.markup.tokens`).

    An empty header is a plain cell, and where all are empty there is no head: a header without a name says nothing.
    """
    head = "".join(_head(h, j in numeric) if h else "<td></td>" for j, h in enumerate(headers))
    head = f"<thead><tr>{head}</tr></thead>" if any(headers) else ""
    body = "".join(
        "<tr>" + "".join(f"<td{' class=num' if j in numeric else ''}>{c}</td>" for j, c in enumerate(row)) + "</tr>"
        for row in rows
    )
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="wb-tablewrap"><table class="wb-table">{title}{head}<tbody>{body}</tbody></table></div>'


def _head(name: str, numeric: bool) -> str:
    """A header, with what stands below it where the glossary knows."""
    said = meaning(name)
    title = f' title="{html.escape(said)}"' if said else ""
    return f'<th scope="col"{" class=num" if numeric else ""}{title}>{header(name)}</th>'


def as_table(
    headers: list[str], rows: list[list[str]], *, numeric: frozenset[int] = frozenset(), label: str = "show as table"
) -> str:
    """The table beside a chart, folded; it opens without asking the server."""
    return (
        "<details"
        f' class="wb-astable"><summary>{html.escape(label)}</summary>{table(headers, rows, numeric=numeric)}</details>'
    )
