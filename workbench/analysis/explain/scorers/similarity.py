"""How much an excerpt looks like a label, without a model: the task of delphi's embedding scorer, embedding-free.

Label and excerpts become bags of words (letters and digits, lower case; a sign that stands alone is a word, too),
weighed by how few of the exam's excerpts have them (tf-idf); the likeness is the cosine of the two. A label that names
what it means rather than the words it fires on scores low here by construction.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+|[^\w\s]")
_SHOWN = {"␣": " ", "↵": "\n", "⇥": "\t", "“": " ", "”": " "}  # how rules show spaces and quote tokens


def words(text: str) -> Counter[str]:
    """Bag of words of a text."""
    for shown, meant in _SHOWN.items():
        text = text.replace(shown, meant)
    return Counter(_WORD.findall(text.lower()))


def likeness(label: str, excerpts: Sequence[str]) -> list[float]:
    """Cosine of the label's words with each excerpt's, weighed by rarity among the excerpts; 0 where none is shared."""
    bags = [words(e) for e in excerpts]
    n = len(bags)
    spread = Counter(w for bag in bags for w in bag)

    def weighed(bag: Counter[str]) -> dict[str, float]:
        return {w: c * (math.log((1 + n) / (1 + spread[w])) + 1) for w, c in bag.items()}

    asked = weighed(words(label))
    out = []
    for bag in map(weighed, bags):
        norm = math.sqrt(sum(v * v for v in asked.values()) * sum(v * v for v in bag.values()))
        out.append(sum(v * bag.get(w, 0.0) for w, v in asked.items()) / norm if norm else 0.0)
    return out
