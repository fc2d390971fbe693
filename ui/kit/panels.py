"""Panels that explain themselves: what was not computed and the command that computes it, what is broken and why.

:func:`guarded` wraps every page body, so that one bad file is a panel and never a traceback or a blank page.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from sae.errors import UserError
from ui.kit.markup import div
from ui.kit.tokens import clip as clip
from ui.kit.tokens import escape as escape

log = logging.getLogger("workbench.ui")


def not_computed(what: str, command: str, why: str = "") -> None:
    """A panel in place of a value that does not exist: never a zero, always the command."""
    run = div("run", f"run <code>{html.escape(command)}</code>")
    head = div("what", f"{html.escape(what)} – not computed")
    st.html(div("wb-panel missing", head, div("why", html.escape(why)) if why else "", run, attrs='role="note"'))


def problem(what: str, why: str) -> None:
    """A panel for something that exists and cannot be shown."""
    st.html(div("wb-panel broken", div("what", escape(what)), div("why", escape(clip(why, 600))), attrs='role="alert"'))


def note(text_html: str, kind: str = "info") -> None:
    """A quiet line; ``text_html`` is the page's own markup with every inserted value escaped."""
    st.html(f'<div class="wb-panel {kind}" role="note">{text_html}</div>')


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Show whatever goes wrong inside as a panel. Streamlit's own control flow (stop, rerun) passes through."""
    try:
        yield
    except UserError as e:
        problem(f"{what} cannot be shown", str(e))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError) as e:
        log.exception("%s", what)
        problem(
            f"{what} cannot be shown",
            f"{type(e).__name__}: a file of this workspace is damaged or half-written ({e}). Make it again; the terminal says more.",
        )


def stats(items: list[tuple[str, str, str]]) -> str:
    """A strip of statistics as HTML: (label, value, what it is over). Values are escaped here."""
    cells = (div("st", div("k", html.escape(k)), div("v", html.escape(v)), div("n", html.escape(n))) for k, v, n in items)
    return div("wb-stats", *cells)


def table(headers: list[str], rows: list[list[str]], *, numeric: frozenset[int] = frozenset(), caption: str = "") -> str:
    """An HTML table; cells are HTML made by the caller (tokens through :mod:`ui.kit.tokens`)."""
    head = "".join(f'<th scope="col"{" class=num" if j in numeric else ""}>{html.escape(h)}</th>' for j, h in enumerate(headers))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=num' if j in numeric else ''}>{c}</td>" for j, c in enumerate(row)) + "</tr>" for row in rows
    )
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f'<div class="wb-tablewrap"><table class="wb-table">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def as_table(headers: list[str], rows: list[list[str]], *, numeric: frozenset[int] = frozenset(), label: str = "show as table") -> str:
    """The table beside a chart, folded; it opens without asking the server."""
    return f'<details class="wb-astable"><summary>{html.escape(label)}</summary>{table(headers, rows, numeric=numeric)}</details>'


def page_title(title: str, sub_html: str = "") -> None:
    """Title of a page; ``sub_html`` is markup with every inserted value escaped."""
    st.html(div("wb-title", f"<h1>{html.escape(title)}</h1>", div("sub", sub_html)))


def heading(title: str, sub_html: str = "") -> None:
    """Title of a panel or page section; ``sub_html`` is markup with every inserted value escaped."""
    st.html(div("wb-head", f"<h2>{html.escape(title)}</h2>", div("sub", sub_html)))
