"""Panels that explain themselves: what was not computed and the command that computes it, what is broken and why.

:func:`guarded` wraps every page body, so that one bad file is a panel and never a traceback or a blank page.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import streamlit as st

from sae.errors import UserError
from workbench.markup.tables import as_table as as_table
from workbench.markup.tables import stats as stats
from workbench.markup.tables import table as table
from workbench.markup.tags import div
from workbench.markup.tokens import clip as clip
from workbench.markup.tokens import escape as escape
from workbench_ui.kit import data
from workbench_ui.kit.commands import absolute, run_html

log = logging.getLogger("workbench.ui")


def not_computed(what: str, command: str, why: str = "", *, state: str = "not computed") -> None:
    """A panel in place of a value that does not exist: never a zero, always the command, as it runs when pasted.

    ``state``: other words for what is an offer rather than a gap.
    """
    run = run_html(absolute(command, data.workspace_folder()))
    head = div("what", f"{html.escape(what)} – {html.escape(state)}")
    st.html(div("wb-panel missing", head, div("why", html.escape(why)) if why else "", run, attrs='role="note"'))


def problem(what: str, why: str) -> None:
    """A panel for something that exists and cannot be shown."""
    st.html(div("wb-panel broken", div("what", escape(what)), div("why", escape(clip(why, 600))), attrs='role="alert"'))


def note(text_html: str, kind: str = "info") -> None:
    """A quiet line; ``text_html`` is the page's own markup with every inserted value escaped."""
    st.html(f'<div class="wb-panel {kind}" role="note">{text_html}</div>')


def trap(text_html: str) -> None:
    """What is known to mislead about the numbers of a page, on the page: a badge and one sentence."""
    note(f"<b>Read with care.</b> {text_html}", "warn")


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
            f"{type(e).__name__}: a file of this workspace is damaged or half-written ({e}). Make it again; the"
            " terminal says more.",
        )


def page_title(title: str, sub_html: str = "") -> None:
    """Title of a page; ``sub_html`` is markup with every inserted value escaped."""
    st.html(div("wb-title", f"<h1>{html.escape(title)}</h1>", div("sub", sub_html)))


def heading(title: str, sub_html: str = "") -> None:
    """Title of a panel or page section; ``sub_html`` is markup with every inserted value escaped."""
    st.html(div("wb-head", f"<h2>{html.escape(title)}</h2>", div("sub", sub_html)))


def two_places(value: float | None) -> str:
    """A number of a statistic; a dash where it was not computed."""
    return "–" if value is None else f"{round(value, 2) + 0.0:.2f}"  # no minus before 0.00


def interval_and_n(found: dict[str, Any]) -> str:
    """What stands below an estimate ``{low, high, n}``: its interval where it has one, and n."""
    if found["low"] is None or found["high"] is None:
        return f"n = {found['n']}"
    return f"95 % {found['low']:.2f} – {found['high']:.2f}, n = {found['n']}"
