"""Large documents as sections, so that a corpus of one file can be parted."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise

LARGEST = 1 / 5  # share of a corpus from which on a document is cut into sections
SECTIONS = 40  # about so many sections would make up the whole corpus
SHORTEST = 200  # characters of a section, at least


def text_digest(text: str) -> str:
    """Hex SHA-256 of a text, by which it is told apart and held out."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def held_by_digest(digest: str) -> bool:
    """Whether text that is packed as it is read is held out: about every tenth, by its :func:`text_digest`."""
    return int(digest[-2:], 16) * 10 < 256


def sections(documents: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The documents, those that are a large part of the whole cut into sections ``NAME§1`` … at paragraphs, lines or
    words. Nothing is lost.
    """
    total = sum(len(t) for _, t in documents)
    size = max(SHORTEST, total // SECTIONS)
    out: list[tuple[str, str]] = []
    for name, text in documents:
        if len(text) <= max(LARGEST * total, 2 * SHORTEST):
            out.append((name, text))
        else:
            out += [(f"{name}§{i + 1}", piece) for i, piece in enumerate(_cut(text, size))]
    return out


def continues(before: str, name: str) -> bool:
    """Whether the document ``name`` goes on where the one called ``before`` ends: the next section of one text."""
    stem, mark, number = name.rpartition("§")
    return bool(mark) and number.isdecimal() and before == f"{stem}§{int(number) - 1}"


_CUTS = (r"\n\s*\n(?=\S)", r"\n(?=\S)", r"(?= \S)", r"\s")
"""Where a text may be cut, best first. Between words before the space: most tokenizers read it with the next word."""


def _cut(text: str, size: int) -> list[str]:
    """Pieces of at least about ``size`` characters, cut where the text itself is cut."""
    ends, at = [], 0
    while len(text) - at > 2 * size:
        window = text[at + size // 2 : at + 2 * size]
        places = next((m for p in _CUTS if (m := [x.end() for x in re.finditer(p, window)])), [size])
        at += size // 2 + min(places, key=lambda e: abs(e - size // 2))
        ends.append(at)
    cuts = [0]
    for lo, hi in pairwise([0, *ends, len(text)]):
        if lo and not text[lo:hi].strip():  # white space alone is no section; it stays with the one before
            cuts.pop()
        cuts.append(hi)
    return [text[lo:hi] for lo, hi in pairwise(cuts)]
