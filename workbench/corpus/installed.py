"""Prose that is on every machine this program is installed on: Python's own help and docstrings, and what the installed
packages say about themselves.

Both are written for readers and need no download. They vary with what is installed, so a store records the digest of
what it read. Paragraphs that were seen before (licences, sections that documentation systems repeat) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions

from workbench.corpus.documents import stdlib_documents

_LONGEST = 24_000  # characters of one document: some packages' descriptions hold the change log of ten years
_MARKUP = re.compile(r"\s*(\[!\[|!\[|<|\.\. \||\.\. image|\.\. _|\[[^\]]+\]:|[-=~^*#|+: ]*$)")
_REPEATED = 40  # characters from which on a paragraph that was seen before is left out


def installed_documents() -> Iterator[tuple[str, str]]:
    """(name, text): documentation of the standard library, then the description of every installed distribution, without
    paragraphs that came before. Names do not depend on where things lie.
    """
    yield from without_repeats([*stdlib_documents(prose=True), *descriptions()])


def descriptions() -> Iterator[tuple[str, str]]:
    """(name, text) of every installed distribution's long description, by name, without badges and rules."""
    found: dict[str, str] = {}
    for distribution in distributions():
        about = distribution.metadata
        name = re.sub(r"[-_.]+", "-", about["Name"] or "").lower()
        text = about.get_payload() or about.get("Description") or ""
        if name and isinstance(text, str) and text.strip():
            found.setdefault(name, text)
    for name in sorted(found):
        text = "\n".join(line.rstrip() for line in found[name].splitlines() if not _markup(line))
        text = re.sub(r"\n{3,}", "\n\n", text).strip()[:_LONGEST]
        if len(text) > 200:
            yield f"{name}/README", text


def _markup(line: str) -> bool:
    return bool(line.strip()) and _MARKUP.match(line) is not None


def without_repeats(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Documents without paragraphs that came before in them or in others, case and white space apart."""
    seen: set[str] = set()
    for name, text in documents:
        kept = []
        for paragraph in re.split(r"\n[ \t]*\n", text):
            key = " ".join(paragraph.lower().split())
            if len(key) >= _REPEATED and key in seen:
                continue
            seen.add(key)
            kept.append(paragraph)
        if len(text := "\n\n".join(kept).strip()) > 200:
            yield name, text
