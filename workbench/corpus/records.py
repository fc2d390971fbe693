"""What counts as a text: one function at the door of every corpus and every prompt.

A record that is no text (null, NaN, a number, an empty string) is left out and counted; a text that needs mending
(bytes that are not UTF-8, halves of surrogate pairs, a byte order mark) is mended and counted. With
``on_bad = "refuse"`` the first of either ends the reading with its file and line. A byte order mark is no fault of the
text: it is always removed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sae.errors import CorruptError, UsageError

OnBad = Literal["skip", "refuse"]
_SURROGATE = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"
BOM = "\ufeff"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")  # UTF-16 and UTF-32, either byte order
LEFT_OUT = ("null", "NaN", "no text", "empty", "no such field")
MENDED = ("bad UTF-8", "lone surrogate", "byte order mark")


@dataclass
class Tally:
    """What reading met: records read; how many of each kind were left out or mended, with the first place of each.

    ``render`` turns a conversation into text, where that is a tokenizer's; then anything else is no text.
    """

    on_bad: OnBad = "skip"
    read: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    roles: dict[str, int] = field(default_factory=dict)  # messages of each role, of conversations that are rendered
    near_copies: int = 0  # documents left out because they are near-copies of an earlier one
    render: Callable[[list[dict[str, Any]]], str] | None = None

    def note(self, kind: str, where: str) -> None:
        """One record of a kind of :data:`LEFT_OUT` or :data:`MENDED`.

        Raises:
            CorruptError: ``on_bad`` is ``refuse``, and it is not a byte order mark.
        """
        if self.on_bad == "refuse" and kind != "byte order mark":
            remedy = "leaves such records out" if kind in LEFT_OUT else "replaces such characters"
            raise CorruptError(f"{where}: {_SAYS[kind]}. Mend the file; on_bad = 'skip' {remedy} and counts them.")
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.first.setdefault(kind, where)

    @property
    def left_out(self) -> int:
        """Records that gave no document."""
        return sum(self.counts.get(k, 0) for k in LEFT_OUT)

    def about(self) -> dict[str, Any]:
        """For a token plan: ``records`` read and counts by kind where something was left out or mended; ``roles`` of
        conversations with their messages.
        """
        records: dict[str, Any] = (
            {"records": {"read": self.read, **dict(sorted(self.counts.items()))}} if self.counts else {}
        )
        if self.near_copies:
            records["near_duplicates_left_out"] = self.near_copies
        return records | ({"roles": dict(sorted(self.roles.items()))} if self.roles else {})

    def lines(self) -> list[str]:
        """One line per kind, for people."""
        return [
            f"{n:,} records {'left out' if kind in LEFT_OUT else 'mended'}: {kind} (first: {self.first[kind]})"
            for kind, n in sorted(self.counts.items())
        ]


_SAYS = {
    "null": "the record's text is null",
    "NaN": "the record's text is not a number (NaN), the mark of a missing value",
    "no text": "the record's text is neither a string nor a conversation",
    "empty": "the record's text is empty",
    "no such field": "the record does not have the text field",
    "bad UTF-8": "bytes that are not UTF-8",
    "lone surrogate": "half of a surrogate pair, which no encoding of text holds",
}


def decoded(data: bytes, where: str, tally: Tally) -> str:
    """Bytes of a file as text.

    Raises:
        CorruptError: UTF-16 or UTF-32, or not UTF-8 where that is to be refused.
    """
    if data.startswith(_WIDE_MARKS):
        raise CorruptError(f"{where}: not UTF-8 but UTF-16 or UTF-32. Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW")
    if data.startswith(BOM.encode()):
        tally.note("byte order mark", where)
        data = data[3:]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        tally.note("bad UTF-8", where)
        return data.decode("utf-8", "replace")


def as_document(value: Any, where: str, tally: Tally) -> str | None:
    """The text of a record's field, mended; None where it has none (counted in ``tally``).

    A conversation (a list of messages with role and content) becomes its messages, one after the other.

    Raises:
        CorruptError: the record is to be refused.
    """
    tally.read += 1
    if tally.render is not None:
        if not is_conversation(value) or not any((m["content"] or "").strip() for m in value):
            tally.note("null" if value is None else "no text", where)
            return None
        return _rendered(value, where, tally)
    if is_conversation(value):
        value = "\n\n".join(f"{m['role']}: {m['content']}" for m in value if isinstance(m["content"], str))
    elif kind := _missing(value):
        tally.note(kind, where)
        return None
    value = _clean(value, where, tally)
    if not value.strip():
        tally.note("empty", where)
        return None
    return value


def _rendered(messages: list[dict[str, Any]], where: str, tally: Tally) -> str:
    """A conversation by its tokenizer's template."""
    assert tally.render is not None
    for m in messages:
        tally.roles[m["role"]] = tally.roles.get(m["role"], 0) + 1
    return tally.render([{**m, "content": _clean(m["content"] or "", where, tally)} for m in messages])


def _clean(text: str, where: str, tally: Tally) -> str:
    """A text without byte order mark and halves of surrogate pairs."""
    if text.startswith(BOM):
        tally.note("byte order mark", where)
        text = text.removeprefix(BOM)
    if _SURROGATE.search(text):
        tally.note("lone surrogate", where)
        text = mended(text)
    return text


def _missing(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return "" if isinstance(value, str) else "no text"


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages: objects with a role and a content (which may be null)."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in value)
        and all(m["content"] is None or isinstance(m["content"], str) for m in value)
    )


def mended(text: str) -> str:
    """Text without halves of surrogate pairs: each becomes U+FFFD, as for bytes that are not UTF-8."""
    return _SURROGATE.sub(REPLACEMENT, text)


def prompt_text(text: Any) -> str:
    """A prompt as the tokenizer may have it: bytes of a terminal that are not UTF-8 become U+FFFD.

    Raises:
        UsageError: not a string, or nothing but white space.
    """
    if not isinstance(text, str):
        raise UsageError(f"a prompt is a text, not {type(text).__name__}. Give a string.")
    if not text.strip():
        raise UsageError("the text is empty. Type or give one.")
    return mended(text)
