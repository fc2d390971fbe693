"""The documentation site as it is installed: where it lies, what its pages are called, and how it is shown.

``make docs`` builds it into ``workbench/_site``, so that a wheel built afterwards carries it; nothing in it asks
another host. Search needs a server, because browsers let no page opened from disk read a second file.
"""

from __future__ import annotations

import mimetypes
import re
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sae.errors import MissingError, UsageError
from sae.strict import nearest
from workbench.markup.glossary import GLOSSARY_PAGE, anchor, words

SITE = Path(__file__).resolve().parent.parent / "_site"
LOOPBACK = "127.0.0.1"
PAGES = {"": "index.html", "glossary": GLOSSARY_PAGE, "recipes": "reference/recipes.html"}  # further names of pages


def site_folder() -> Path:
    """The folder of the site.

    Raises:
        MissingError: this installation was made without it.
    """
    if not (SITE / "index.html").is_file():
        raise MissingError(
            "the documentation site is not part of this installation (it was installed from sources before the site was"
            " built). In a checkout: make docs. Otherwise: pip install --force-reinstall interpretability-workbench"
        )
    return SITE


def address(what: str, verbs: tuple[str, ...]) -> str:
    """Path below the site of what somebody asks for: a verb, a word or column of the glossary, or a page, by its path
    or by the last part of it.

    Raises:
        UsageError: none of these (the message names the nearest), or the last part of several pages (it names them).
    """
    asked = " ".join(what.split())
    if asked in PAGES:
        return PAGES[asked]
    if asked in verbs:
        return f"reference/cli.html#{asked}"
    if (found := anchor(asked)) is not None:
        return f"{GLOSSARY_PAGE}#{found}"
    pages = {p.relative_to(SITE).with_suffix("").as_posix() for p in site_folder().rglob("*.html")}
    page = asked.removesuffix(".html")
    if page in pages:
        return f"{page}.html"
    called = sorted(p for p in pages if p.rpartition("/")[2] == page)
    if len(called) == 1:
        return f"{called[0]}.html"
    if called:
        raise UsageError(f"{len(called)} pages are called {asked!r}: {' and '.join(called)}. Name one of them.")
    raise UsageError(
        f"nothing in the documentation is called {asked!r} ({nearest(asked, [*verbs, *words(), *sorted(pages)])}). Name"
        " a verb, a word of the glossary, or a page such as how-to/train."
    )


def read(path: str) -> tuple[bytes, str] | None:
    """Bytes and media type of a file of the site by its path below it; None where there is none, or no site."""
    root = SITE.resolve()
    file = (root / path.lstrip("/")).resolve()
    if file.is_dir():
        file = file / "index.html"
    if root not in file.parents or not file.is_file():
        return None
    return file.read_bytes(), mimetypes.guess_type(file.name)[0] or "application/octet-stream"


def inline_scripts(page: str) -> list[str]:
    """The scripts that stand in a page of the site itself (a policy names them by digest)."""
    return re.findall(r"<script(?![^>]*\b(?:src|type)=)[^>]*>(.*?)</script>", page, flags=re.DOTALL)


class _Quiet(SimpleHTTPRequestHandler):
    """Files of one folder, without a line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def server(port: int) -> ThreadingHTTPServer:
    """A server of the site on this machine alone; 0 takes a free port."""
    return ThreadingHTTPServer((LOOPBACK, port), partial(_Quiet, directory=str(site_folder())))
