"""Searching the latents of a dictionary: labels, tokens they peak on and promote, and their strongest contexts."""

from __future__ import annotations

import re
from dataclasses import dataclass

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

    def holding(self, text: str) -> NDArray[np.bool_]:
        """Which latents hold ``text``, literally and whatever its case: bool [L].

        100,000 latents take a few milliseconds.
        """
        found = np.ones(len(self.ends), dtype=bool)
        if needle := text.lower().replace("\x1e", " ").encode("utf-8", "replace"):
            # From a hit to the end of its latent: one match for each latent, however often it holds the text.
            starts = [m.start() for m in re.finditer(re.escape(needle) + b"[^" + END + b"]*", self.text)]
            found[:] = False
            found[np.searchsorted(self.ends, starts, side="right")] = True
        return found
