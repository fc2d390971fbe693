"""Which entries of two JSON values differ, and how a person is told: the key, and both values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

ABSENT = object()  # the key is not there at all
SHOWN = 6  # entries a message names before it only counts
_LONGEST = 100


class Change(NamedTuple):
    """One entry: its dotted key, what the result that exists has, and what is asked for."""

    key: str
    there: Any
    asked: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.there)} there, {_shown(self.asked)} asked"


def changes(there: Any, asked: Any, key: str = "") -> list[Change]:
    """Every leaf in which two JSON values differ, by key. Lists of one length are compared entry by entry."""
    if isinstance(there, dict) and isinstance(asked, dict):
        return [
            c
            for k in sorted(there.keys() | asked.keys())
            for c in changes(there.get(k, ABSENT), asked.get(k, ABSENT), f"{key}.{k}" if key else k)
        ]
    if isinstance(there, list) and isinstance(asked, list) and len(there) == len(asked):
        pairs = enumerate(zip(there, asked, strict=True))
        return [c for i, (a, b) in pairs for c in changes(a, b, f"{key}[{i}]")]
    return [] if there == asked else [Change(key, there, asked)]


def said(found: Sequence[Change]) -> str:
    """The changes in one line; of many the first and a count."""
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(str(c) for c in found[:SHOWN]) + more


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "nothing"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
