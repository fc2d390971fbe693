"""One latent as HTML that stands alone, for notebooks: the markup of its page inside its own style sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.markup import look
from workbench.markup.charts import histogram, logit_bars
from workbench.markup.glossary import badge
from workbench.markup.latent import contexts_html, label_line, neighbours_html, stats_strip
from workbench.markup.tags import div
from workbench.markup.tokens import escape

if TYPE_CHECKING:
    from collections.abc import Callable

    from workbench.results.records import LatentRecords


def style() -> str:
    """The style sheet of :func:`section`."""
    return look() + look("show.css")


def latent_html(records: LatentRecords, latent: int, *, contexts: int = 5) -> str:
    """A latent with its style sheet: ``IPython.display.HTML(latent_html(records, 17))``."""
    return f'<style>{style()}</style><div class="wb-page">{section(records, latent, contexts=contexts)}</div>'


def section(
    records: LatentRecords,
    latent: int,
    *,
    contexts: int,
    anchor: str = "",
    note: str = "",
    link: Callable[[int], str] = lambda i: f"#{i}",
) -> str:
    """Statistics, histogram and logit effects, contexts, neighbours.

    ``link`` turns a neighbour's number into markup.
    """
    row = records.row(latent)
    effects, near = records.logits(latent), neighbours_html(records, latent, link)
    shown = contexts_html(
        records, latent, "All", n=contexts, window=None, breaks=False, vmax=float(row.get("max") or 0.0)
    )
    return (
        f"<section{f' id={anchor}' if anchor else ''}>"
        + div("wb-title", f"<h1>Latent {latent:,}</h1>", label_line(row), badge("dictionary", escape(records.id)))
        + (div("note", escape(note)) if note.strip() else "")
        + stats_strip(row, records.n_tokens)
        + div("two", histogram(records.histogram(latent)), logit_bars(effects, 8) if effects is not None else "")
        + div("wb-head", "<h2>Contexts</h2>", div("sub", "hover a token for its value"))
        + div("", shown)
        + (f"<details><summary>nearest latents of the dictionary</summary>{near}</details>" if near is not None else "")
        + "</section>"
    )
