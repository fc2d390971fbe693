"""What every page of the folder shares: its head, its way back, and links that work from disk and from any web server.

Each page carries its own policy: it may load this folder's style, script and pictures, and nothing else from anywhere.
Texts that come from a model or a person pass :mod:`workbench.markup.tokens`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from workbench.markup.show import style
from workbench.markup.tags import div
from workbench.markup.tokens import clip, escape, visible

POLICY = (
    "default-src 'none'; style-src 'self' file: 'unsafe-inline'; script-src 'self' file:; img-src 'self' file: data:;"
    " base-uri 'none'; form-action 'none'"
)
Crumb = tuple[str, str]  # what it is called, and the path of its page in the folder


def assets() -> dict[str, bytes]:
    """The style sheet and the script."""
    here = Path(__file__).parent
    return {
        "gallery.css": (style() + (here / "gallery.css").read_text(encoding="utf-8")).encode(),
        "gallery.js": (here / "gallery.js").read_bytes(),
    }


def page(path: str, title: str, body: str, *, sub: str = "", crumbs: Sequence[Crumb] = ()) -> bytes:
    """One page at ``path`` (``latents/x/3.html``). ``title`` and ``sub`` are text, ``body`` is markup."""
    up = "../" * path.count("/")
    name = clip(visible(" ".join(title.split())), 120)
    way = "".join(f'<a href="{up}{link(to)}">{escape(clip(text, 60))}</a> / ' for text, to in crumbs)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy"'
        f' content="{POLICY}">\n<meta name="referrer" content="no-referrer">\n<meta name="viewport"'
        f' content="width=device-width, initial-scale=1">\n<title>{html.escape(name)}</title>\n<link rel="stylesheet"'
        f' href="{up}gallery.css">\n<script src="{up}gallery.js" defer></script>\n</head>\n'
        '<body class="wb-page">\n<main>\n'
        + (f'<nav class="way" aria-label="Where this page is">{way}{html.escape(name)}</nav>' if crumbs else "")
        + f'<header class="wb-title"><h1>{html.escape(name)}</h1><div class="sub">{escape(sub)}</div></header>\n'
        + f"{body}\n</main>\n</body>\n</html>\n"
    ).encode()


def link(path: str) -> str:
    """A path as an address."""
    return html.escape(quote(path))


def head(title: str, sub: str = "") -> str:
    """The heading of a part of a page."""
    return div("wb-head", f"<h2>{html.escape(title)}</h2>", div("sub", escape(sub)) if sub else "")


def folded(title: str, inner: str) -> str:
    """What is shown when it is asked for; without a script, too."""
    return f"<details><summary>{html.escape(title)}</summary>{inner}</details>"


def sortable(markup: str) -> str:
    """A table whose headers sort and which has a box to search in, where scripts run."""
    return div("sortable", markup)
