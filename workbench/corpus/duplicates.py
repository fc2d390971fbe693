"""Texts that come again: licence headers, mirrored pages, one record exported twice.

A document is a near-copy of an earlier one if most of its runs of 16 words stand in it (what copies share and texts on
one subject do not). Of each document a fixed fraction of its runs is kept, those whose digest falls into it, so one
pass over the words and one table serve any number of documents (Broder 1997, "On the resemblance and containment of
documents", https://doi.org/10.1109/SEQUEN.1997.666900).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import xxhash

from workbench.run import long_step

RUN = 16  # words
KEPT = 8  # one run in so many is remembered, of texts long enough
SHARE = 0.8  # of a document's remembered runs that must stand in one earlier document


def first_copies(texts: Sequence[str]) -> np.ndarray:
    """Of every text the first one it is a near-copy of, int64 [n]; its own number where there is none before it."""
    owner_of: dict[int, int] = {}
    first = np.arange(len(texts), dtype=np.int64)
    with long_step("looking for copies", sum(map(len, texts)), " characters") as shown:
        for i, text in enumerate(texts):
            sketch = _sketch(text)
            owners = Counter(owner_of[g] for g in sketch if g in owner_of)
            if owners:
                best, n = owners.most_common(1)[0]
                if n >= SHARE * len(sketch):
                    first[i] = best
            for g in sketch:
                owner_of.setdefault(g, int(first[i]))
            shown.update(len(text))
    return first


def _sketch(text: str) -> set[int]:
    """Digests of the remembered runs of words; of a short text those of all its runs, or of the whole."""
    words = text.split()
    if len(words) < RUN:
        return {xxhash.xxh3_64_intdigest(" ".join(words).encode("utf-8", "replace"))}
    runs = {
        xxhash.xxh3_64_intdigest(" ".join(words[i : i + RUN]).encode("utf-8", "replace"))
        for i in range(len(words) - RUN + 1)
    }
    kept = {r for r in runs if r % KEPT == 0}
    return kept if len(kept) >= KEPT else runs
