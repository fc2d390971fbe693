"""Large documents as sections, so that a corpus of one file can be parted."""

from __future__ import annotations

import hashlib
import re

LARGEST = 1 / 5  # share of a corpus from which on a document is cut into sections
SECTIONS = 40  # about so many sections would make up the whole corpus
SHORTEST = 200  # characters of a section, at least


def text_digest(text: str) -> str:
    """Hex SHA-256 of a text, by which it is told apart and held out."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def sections(documents: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The documents, those that are a large part of the whole cut into sections ``NAME§1`` … at paragraphs, lines or
    words. Nothing is lost but white space between sections.
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


def _cut(text: str, size: int) -> list[str]:
    """Pieces of at least about ``size`` characters, cut where the text itself is cut."""
    pieces, at = [], 0
    while len(text) - at > 2 * size:
        window = text[at + size // 2 : at + 2 * size]
        ends = next((m for p in (r"\n\s*\n", r"\n", r"\s") if (m := [x.end() for x in re.finditer(p, window)])), [size])
        end = at + size // 2 + min(ends, key=lambda e: abs(e - size // 2))
        pieces.append(text[at:end])
        at = end
    return [p for p in (*pieces, text[at:]) if p.strip()]
