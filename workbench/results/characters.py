"""Displayed tokens in a row, as text: bytes of unfinished characters (``<E6>``, ``<97>``, …) become characters.

A vocabulary can only show such a token by its bytes; beside its neighbours it is a part of a character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

_BYTES = re.compile(r"(?:<[0-9A-F]{2}>)+")
_NEXT = re.compile(r"(?:<[0-9A-F]{2}>)+$")


def whole_characters(tokens: Sequence[str]) -> list[str]:
    """The tokens of a text, as many as there were: a character that several of them make up stands with the token that
    completes it, those before show their bytes; bytes that make up none stay as they are.
    """
    if not any(map(_BYTES.fullmatch, tokens)):
        return list(tokens)
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    out, shown = [], 0  # shown: bytes of the unfinished character that stand with the tokens before
    for token in tokens:
        if not _BYTES.fullmatch(token):
            decoder.reset()
            shown = 0
            out.append(token)
            continue
        data = bytes.fromhex(token.replace("<", "").replace(">", ""))
        text = decoder.decode(data)
        while shown and text and _escaped(text[0]):  # they were the beginning of nothing
            text, shown = text[1:], shown - 1
        rest = decoder.getstate()[0]
        new = rest[max(0, len(rest) - len(data)) :]
        out.append("".join(f"<{ord(c) - 0xDC00:02X}>" if _escaped(c) else c for c in text) + _hex(new))
        shown = len(rest)
    return out


def joined(tokens: Sequence[str]) -> str:
    """The tokens as one text, without a seam."""
    return _BYTES.sub(_decoded, "".join(tokens))


def cells_of(tokens: Sequence[str], text: str) -> list[tuple[str, list[int]]]:
    """The displayed tokens of ``text`` as one sees it: (what stands there, indices), those together that make one
    character only together. Where the pieces do not add up to the text (a tokenizer that changes it), every token
    stays by itself.
    """
    out: list[tuple[str, list[int]]] = []
    open_: list[int] = []  # tokens of a character that is not complete yet
    rest = text

    def close(whole: str) -> None:
        out.extend([(whole, list(open_))] if whole else [(tokens[k], [k]) for k in open_])
        open_.clear()

    for t, token in enumerate(tokens):
        if not rest.startswith(token) and ("\ufffd" in token or _BYTES.fullmatch(token)):
            open_.append(t)
            continue
        done = token if rest.startswith(token) else _NEXT.sub("", token)  # without what begins the next character
        here = bool(done) and rest.startswith(done)
        if open_ and "\ufffd" in tokens[open_[0]]:  # what a decoder puts in place of bytes: it is what stands before
            until = rest.find(done)
            close(rest[: max(0, until)])
            rest = rest[max(0, until) :]
            here = bool(done) and rest.startswith(done)
        if open_ and here and not done.isascii():  # bytes were shown, and the character stands with its last token
            open_.append(t)
            close(done)
        else:
            close("")
            out.append((done if here else token, [t]))
        rest = rest.removeprefix(done) if here else rest
    close(rest if open_ and "\ufffd" in tokens[open_[0]] else "")
    return out


def _decoded(run: re.Match[str]) -> str:
    text = bytes.fromhex(run[0].replace("<", "").replace(">", "")).decode("utf-8", "surrogateescape")
    return "".join(f"<{ord(c) - 0xDC00:02X}>" if _escaped(c) else c for c in text)


def _escaped(c: str) -> bool:
    """Whether a character stands for a byte that is not UTF-8."""
    return "\udc80" <= c <= "\udcff"


def _hex(data: bytes) -> str:
    return "".join(f"<{b:02X}>" for b in data)
