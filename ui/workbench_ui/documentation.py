"""The documentation beside the pages, under ``/docs/``: what a word, a column or a badge links to.

Where the program was installed without the site, the glossary is shown alone, made from the same lines.
"""

from __future__ import annotations

import html
from pathlib import Path

from starlette.responses import HTMLResponse, RedirectResponse, Response

from workbench.markup.glossary import GLOSSARY_PAGE, anchor, meaning, pattern_lines, words
from workbench.serving import site

PREFIX = "/docs/"
ALONE = Path(__file__).with_name("glossary.html")


def answer(path: str) -> Response | None:
    """A file of the site by its path below it; of the glossary alone where there is no site; None for anything else."""
    found = site.read(path)
    if found is not None:
        content, kind = found
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})
    if (site.SITE / "index.html").is_file():
        return None
    if path == GLOSSARY_PAGE:
        return HTMLResponse(glossary_alone())
    return RedirectResponse(f"{PREFIX}{GLOSSARY_PAGE}") if path.endswith((".html", "/")) or not path else None


def glossary_alone() -> str:
    """Every word and column with its line, under the anchors the site gives them."""
    lines = [(word, str(meaning(word)), str(anchor(word))) for word in sorted(words(), key=str.lower)]
    told = [f'<dt id="{at}">{html.escape(word)}</dt><dd>{html.escape(line)}</dd>' for word, line, at in lines]
    axes = [f"<dt>{html.escape(name)}</dt><dd>{html.escape(line)}</dd>" for name, line in pattern_lines()]
    return (
        ALONE.read_text(encoding="utf-8")
        .replace("<!-- words -->", "\n".join(told))
        .replace("<!-- axes -->", "\n".join(axes))
    )
