"""Searching the latents of a dictionary: labels, tokens they peak on and promote, and their strongest contexts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.results.records import LatentRecords

END = b"\x1e"
CONTEXTS, BEFORE, AFTER = 3, 8, 4  # strongest contexts that are searched, and the tokens around their peaks


@dataclass(frozen=True)
class Haystack:
    """What is searched, in lower case and as UTF-8: ``text`` holds each latent's words ended by :data:`END`, ``ends``
    int64 [L] says where each ends. Latents are in the order of the records' table.
    """

    text: bytes
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, records: LatentRecords) -> Haystack:
        """Label, peak token and promoted tokens of every latent, and the text around the peaks of its strongest
        contexts, where neighbouring tokens run together (``i`` + ``mport``).
        """
        table = records.table
        parts = [
            table[c].fillna("").astype(str).str.lower() for c in ("label", "peak_text", "promoted_text") if c in table
        ]
        parts.append(pd.Series(records.snippets(CONTEXTS, BEFORE, AFTER), index=table.index).str.lower())
        joined = parts[0].str.cat(parts[1:], sep="\x1f")
        texts = [text.replace("\x1e", " ").encode("utf-8", "replace") for text in joined]
        return cls(END.join([*texts, b""]), np.cumsum([len(text) + len(END) for text in texts], dtype=np.int64))

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How often each byte stands in ``text``: int64 [256]."""
        return np.bincount(np.frombuffer(self.text, dtype=np.uint8), minlength=256)

    def holding(self, text: str) -> NDArray[np.bool_]:
        """Which latents hold ``text``, literally and whatever its case: bool [L].

        100,000 latents take a few milliseconds.
        """
        needle = np.frombuffer(text.lower().replace("\x1e", " ").encode("utf-8", "replace"), dtype=np.uint8)
        if not len(needle):
            return np.ones(len(self.ends), dtype=bool)
        hay = np.frombuffer(self.text, dtype=np.uint8)
        if len(needle) > len(hay):
            return np.zeros(len(self.ends), dtype=bool)
        # Array by array, so that a letter in every latent costs what a rare word does: where the needle's rarest byte
        # stands, then which of these places hold the other bytes too.
        rarest = int(self.counts[needle].argmin())
        starts = np.flatnonzero(hay[rarest : len(hay) - len(needle) + 1 + rarest] == needle[rarest])
        for i in np.argsort(self.counts[needle], kind="stable")[1:]:
            starts = starts[hay[starts + i] == needle[i]]
        hits_before = np.searchsorted(starts, self.ends)
        return np.diff(hits_before, prepend=0) > 0
