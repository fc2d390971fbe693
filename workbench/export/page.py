"""Latents as one HTML file: opens anywhere, asks nobody for anything, runs no script, follows the reader's light or dark theme.

Everything that comes from a model or a person passes :mod:`workbench.markup.tokens`; beyond that, the file's own policy
(``default-src 'none'``) leaves a token nothing to run or to load, even where a browser would be fooled.
"""

from __future__ import annotations

import html

from workbench.export.selection import Chosen
from workbench.markup import look
from workbench.markup.charts import histogram, logit_bars
from workbench.markup.latent import contexts_html, label_line, neighbours_html, stats_strip
from workbench.markup.tables import table
from workbench.markup.tags import div, span
from workbench.markup.tokens import clip, escape, visible

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_STYLE = """
html { color-scheme: light dark; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 "Source Sans 3", system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 48px; display: grid; gap: 22px; grid-template-columns: minmax(0, 1fr); }
section { display: grid; gap: 16px; grid-template-columns: minmax(0, 1fr); border-top: 2px solid var(--line); padding-top: 18px; scroll-margin-top: 8px; }
.two { display: grid; gap: 16px 28px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.note { border-left: 3px solid var(--warm); padding: 4px 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
details > summary { cursor: pointer; color: var(--link); font-size: 13px; width: max-content; }
@media print { section { break-inside: avoid-page; } }
"""


def page(title: str, found: list[Chosen], *, contexts: int) -> str:
    """The whole document. Equal records give equal text."""
    name = clip(visible(" ".join(title.split())), 120)
    models = dict.fromkeys(str(x.records.metadata.get("model", "")) for x in found)
    about = f"{len(found)} latent{'s' if len(found) != 1 else ''} of {', '.join(m for m in models if m)}"
    body = [
        f'<header class="wb-title"><h1>{html.escape(name)}</h1><div class="sub">{escape(about)}</div></header>',
        _contents(found) if len(found) > 1 else "",
        *(_section(x, j, found, contexts) for j, x in enumerate(found)),
        _sources(found),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(name)}</title>\n<style>{look()}{_STYLE}</style>\n</head>\n"
        f'<body class="wb-page">\n<main>\n{"".join(body)}\n</main>\n</body>\n</html>\n'
    )


def _contents(found: list[Chosen]) -> str:
    rows = []
    for j, x in enumerate(found):
        row = x.records.row(x.latent)
        peak = row.get("peak_text")
        label = row.get("label")
        said = escape(clip(" ".join(label.split()), 100)) if isinstance(label, str) else ""
        rows.append(
            [
                f'<a href="#l{j}">{x.latent}</a>',
                escape(x.records.id),
                said or (f"peaks on {escape(clip(peak, 40))}" if isinstance(peak, str) else "–"),
                escape(clip(x.note, 160)),
            ]
        )
    return table(["latent", "dictionary", "about", "note"], rows)


def _section(x: Chosen, j: int, found: list[Chosen], contexts: int) -> str:
    """One latent: statistics, histogram and logit effects, contexts, neighbours."""
    records, row = x.records, x.records.row(x.latent)
    here = {(y.records.id, y.latent): k for k, y in enumerate(found)}

    def link(other: int) -> str:
        at = here.get((records.id, other))
        return f"#{other}" if at is None else f'<a href="#l{at}">#{other}</a>'

    effects, near = records.logits(x.latent), neighbours_html(records, x.latent, link)
    badge = span("wb-badge", escape(records.id))
    shown = contexts_html(records, x.latent, "All", n=contexts, window=None, breaks=False, vmax=float(row.get("max") or 0.0))
    return (
        f'<section id="l{j}">'
        + div("wb-title", f"<h1>Latent {x.latent:,}</h1>", label_line(row), badge)
        + (div("note", escape(x.note)) if x.note.strip() else "")
        + stats_strip(row, records.n_tokens)
        + div("two", histogram(records.histogram(x.latent)), logit_bars(effects, 8) if effects is not None else "")
        + div("wb-head", "<h2>Contexts</h2>", div("sub", "hover a token for its value"))
        + div("", shown)
        + (f"<details><summary>nearest latents of the dictionary</summary>{near}</details>" if near is not None else "")
        + "</section>"
    )


def _sources(found: list[Chosen]) -> str:
    """What the numbers rest on."""
    unique = {x.item.id: x for x in found}
    rows = [
        [
            escape(x.records.id),
            escape(x.records.metadata.get("hook", "–")),
            f"{x.records.n_tokens:,}",
            f"<code>{x.item.version}</code>",
            f"<code>{escape(clip(x.item.manifest.command or '–', 110))}</code>",
        ]
        for x in unique.values()
    ]
    head = div("wb-head", "<h2>Where these numbers come from</h2>")
    return f"<section>{head}{table(['dictionary', 'hook', 'tokens', 'data version', 'made by'], rows, numeric=frozenset({2}))}</section>"
