"""Latents as one HTML file: opens anywhere, asks nobody for anything, runs no script, follows the reader's light or
dark theme.

Everything that comes from a model or a person passes :mod:`workbench.markup.tokens`; beyond that, the file's own policy
(``default-src 'none'``) leaves a token nothing to run or to load, even where a browser would be fooled.
"""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path

from workbench.exporting.documents.selection import Chosen
from workbench.markup.glossary import standing_alone
from workbench.markup.show import section, style
from workbench.markup.tables import table
from workbench.markup.tags import div
from workbench.markup.tokens import clip, escape, visible

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@cache
def _layout() -> str:
    """What the document adds to the style sheet of its sections."""
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


@standing_alone()
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
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy"'
        f' content="{POLICY}">\n<meta name="referrer" content="no-referrer">\n<meta name="viewport"'
        ' content="width=device-width,'
        f' initial-scale=1">\n<title>{html.escape(name)}</title>\n<style>{style()}{_layout()}</style>\n</head>\n<body'
        f' class="wb-page">\n<main>\n{"".join(body)}\n</main>\n</body>\n</html>\n'
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
    """One latent; neighbours that are in the selection are linked."""
    here = {(y.records.id, y.latent): k for k, y in enumerate(found)}

    def link(other: int) -> str:
        at = here.get((x.records.id, other))
        return f"#{other}" if at is None else f'<a href="#l{at}">#{other}</a>'

    return section(x.records, x.latent, contexts=contexts, anchor=f"l{j}", note=x.note, link=link)


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
    columns = ["dictionary", "hook", "tokens", "data version", "made by"]
    return f"<section>{head}{table(columns, rows, numeric=frozenset({2}))}</section>"
