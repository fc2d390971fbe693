"""Tokens and other free text in every format: nothing is lost, nothing runs, nothing reorders the text around it.

Tokens hold anything: ``NaN``, carriage returns, LaTeX and CSV metacharacters, emoji, bidirectional overrides.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable

_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",  # after the end of a table's row they would be arguments
}
_MATH = {"→": r"$\rightarrow$", "≥": r"$\geq$", "≤": r"$\leq$", "–": "--", "—": "---", "…": r"\ldots{}", "−": "$-$"}


def valid(text: str) -> str:
    """The text with lone surrogates, which no UTF-8 file can hold, replaced by U+FFFD."""
    return "".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in text)


def unprintable(c: str) -> bool:
    """Whether a character draws nothing or moves other characters: controls, format and bidi marks, unassigned,
    separators.
    """
    return c != " " and unicodedata.category(c)[0] in "CZ"


def code_point(c: str) -> str:
    """``⟨U+202E⟩``."""
    return f"⟨U+{ord(c):04X}⟩"


def quoted(text: str) -> str:
    """A JSON string literal: what a CSV cell holds. ``json.loads`` gives the text back; unprintable characters are
    escapes.
    """
    body = json.dumps(valid(text), ensure_ascii=False)
    return "".join("".join(f"\\u{u:04x}" for u in _utf16(c)) if unprintable(c) else c for c in body)


def _utf16(c: str) -> list[int]:
    raw = c.encode("utf-16-be")
    return [int.from_bytes(raw[i : i + 2], "big") for i in range(0, len(raw), 2)]


def visible(text: str, drawable: Callable[[str], bool] = lambda c: True) -> str:
    """For figures: line breaks as signs, and ``⟨U+XXXX⟩`` for what cannot be drawn."""
    out = []
    for c in valid(text):
        sign = _VISIBLE.get(c, c)
        out.append(sign if not unprintable(sign) and drawable(sign) else code_point(c))
    return "".join(out)


WORD = 16  # letters after which a long word may be broken


def latex(text: str, *, breaks: bool = False) -> str:
    """For LaTeX: every special character escaped, spaces that would vanish made visible, beyond Latin-1 ``<U+XXXX>``.

    With ``breaks`` a line may end inside a long word.
    """
    out, word = [], 0
    for i, c in enumerate(text := valid(text)):
        word = 0 if c == " " else word + 1
        if breaks and word and word % WORD == 0:
            out.append(r"\allowbreak{}")
        if c == " " and (i == 0 or i == len(text) - 1 or text[i - 1] == " "):
            out.append(r"\textvisiblespace{}")
        elif c in "-," and i and text[i - 1] == c:  # else a ligature
            out.append("{}" + c)
        elif c in "\n\r\t":
            out.append(r"\textbackslash{}" + {"\n": "n", "\r": "r", "\t": "t"}[c])
        elif c in _LATEX:
            out.append(_LATEX[c])
        elif c in _MATH:
            out.append(_MATH[c])
        elif 0x20 <= ord(c) < 0x7F or (0xA1 <= ord(c) <= 0xFF and c != "\u00ad"):
            out.append(c)
        else:
            out.append(rf"\textless{{}}U+{ord(c):04X}\textgreater{{}}")
    return "".join(out)
