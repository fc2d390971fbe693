"""Where a rule of :mod:`workbench.analysis.explain.rules` holds on rows of codes, those it was made on or others."""

from __future__ import annotations

import numpy as np

from workbench.analysis.explain.surface import next_ids, previous_ids, surface
from workbench.analysis.latents.encoded import Codes


class Rules:
    """Where a rule of :mod:`workbench.analysis.explain.rules` holds on rows of codes."""

    def __init__(self, codes: Codes, vocab: list[str]):
        v = len(vocab)
        before = previous_ids(codes.ids, codes.seq, codes.pos, v)
        self.key = {
            "token": codes.ids.astype(np.int64),
            "previous": before,
            "next": next_ids(codes.ids, codes.seq, codes.pos, v),
            "pair": before * (v + 1) + codes.ids,
        }
        self.where = surface(codes.ids, codes.seq, codes.pos, vocab)

    def holds(self, family: str, keys: list[int], where: str) -> np.ndarray:
        """Bool [N]. Keys of ``pair`` are ``previous * (vocabulary + 1) + token``."""
        found = np.ones(len(self.key["token"]), bool) if family == "any" else np.isin(self.key[family], keys)
        return found & self.where[where] if where else found


def pair_keys(codes: Codes, vocab_size: int) -> np.ndarray:
    """What the numbers of ``pair`` keys in a table of rules stand for, from the codes that the rules were made on."""
    before = previous_ids(codes.ids, codes.seq, codes.pos, vocab_size)
    return np.unique(before * (vocab_size + 1) + codes.ids)
