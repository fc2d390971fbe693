"""The same text read by two tokenizers: tokens are matched by where they end.

Models with different tokenizers share no token ids, but they can read the same text. The sequences of a store are
decoded once and read again by each tokenizer; a token of one side is matched with the token of the other whose last
character is the same, because at that place both models have read the same text. Tokens that end where the other side
has no end are left out, so a comparison says on how many of how many tokens it rests.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from sae.errors import UsageError
from workbench.analysis.comparison.aligned import TokenSet
from workbench.corpus.contract import contract_of, words_digest

LEAST = 100  # matched tokens on which anything can be said


def same_words(a: Any, b: Any) -> bool:
    """Whether two tokenizers' ids stand for the same words; without one there is nothing to tell them apart by."""
    return a is None or b is None or bool(a.get_vocab() == b.get_vocab())


@dataclass(frozen=True)
class SpanTokens(TokenSet):
    """Tokens of one reading of the text that end where the other reading's end too, row by row.

    Attributes:
        grid: int64 [S, width], the sequences as this tokenizer reads them, shorter ones padded at the end.
        mask: bool [S, width], which of them are rows. of: tokens that are data in this reading, matched or not.
        words: digest of the tokenizer's vocabulary. other: the other reading.
    """

    grid: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    mask: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))
    of: int = 0
    words: str = ""
    other: SpanTokens | None = None

    @property
    def two_readings(self) -> bool:
        return True

    @property
    def positions(self) -> np.ndarray:
        return np.arange(1, self.grid.shape[1])

    def sequences_with_rows(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.searchsorted(self.sequences, sequences)
        return self.grid[at], self.mask[at]

    def read_by(self, words: str, who: str) -> SpanTokens:
        """The reading of the tokenizer with a digest of vocabulary.

        Raises:
            UsageError: it is neither side's.
        """
        for side in (self, self.other):
            if side is not None and side.words == words:
                return side
        raise UsageError(
            f"{who} has a tokenizer that is neither model's; a comparison aligns two. Compare dictionaries of two"
            " models."
        )


def spans_of(tokens: TokenSet, a: Any, b: Any) -> SpanTokens:
    """The tokens of a set as tokenizer ``a`` reads their text, matched with those of ``b`` (``.other``).

    Args:
        a: the tokenizer the set's store was cut with.

    Raises:
        UsageError: a tokenizer that does not say where its tokens lie, or too few tokens that end together.
    """
    for tokenizer in (a, b):
        if not getattr(tokenizer, "is_fast", False):
            raise UsageError(
                f"{type(tokenizer).__name__} does not say where its tokens lie in the text (return_offsets_mapping of"
                " a fast tokenizer does), so two tokenizers cannot be aligned by it. Choose a model with a"
                " tokenizer.json."
            )
    sequences = tokens.sequences
    ids_of, rows_of = tokens.store.sequences_with_rows(sequences)
    texts = [_decoded(a, ids) for ids in ids_of]
    chosen = [
        _characters(a, ids, is_row, text) if tokens.store.spec.row_mask else None
        for ids, is_row, text in zip(ids_of, rows_of, texts, strict=True)
    ]
    read = [_read(t, texts) for t in (a, b)]
    width = [max(len(ids) for ids, _ in side) + 1 for side in read]
    grids = [np.zeros((len(texts), w), np.int64) for w in width]
    masks = [np.zeros((len(texts), w), bool) for w in width]
    rows: list[list[tuple[int, int]]] = [[], []]
    of = [0, 0]
    contracts = [contract_of(t) for t in (a, b)]
    for s in range(len(texts)):
        ends = []
        for side, contract in enumerate(contracts):
            ids, end = read[side][s]
            begin = int(contract.first is not None)
            grids[side][s, :begin] = contract.first or 0
            grids[side][s, begin : begin + len(ids)] = ids
            data = contract.is_row(np.concatenate([[-1] * begin, ids]).astype(np.int64))[begin:]
            if (mine := chosen[s]) is not None:
                data &= mine[np.asarray(end, np.int64) - 1]
            of[side] += int(data.sum())
            ends.append({e: begin + j for j, e in enumerate(end) if data[j]})  # of equal ends the last token's
        for e in sorted(ends[0].keys() & ends[1].keys()):
            for side in (0, 1):
                rows[side].append((s, ends[side][e]))
    if len(rows[0]) < LEAST:
        raise UsageError(
            f"only {len(rows[0]):,} tokens of the two tokenizers end at the same character of the text; at least"
            f" {LEAST} are needed. Compare on more tokens."
        )
    sides = []
    for side, tokenizer in enumerate((a, b)):
        at = np.array(rows[side], np.int64)
        masks[side][at[:, 0], at[:, 1]] = True
        sides.append(
            SpanTokens(
                tokens.store,
                np.arange(len(at)),
                grids[side][at[:, 0], at[:, 1]].astype(np.int32),
                sequences[at[:, 0]],
                at[:, 1].astype(np.int32),
                grids[side],
                masks[side],
                of[side],
                words_digest(tokenizer, len(tokenizer)),
            )
        )
    return replace(sides[0], other=sides[1])


def _decoded(tokenizer: Any, ids: np.ndarray) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _characters(tokenizer: Any, ids: np.ndarray, is_row: np.ndarray, text: str) -> np.ndarray:
    """Which characters of a sequence's text belong to tokens that are rows: bool [len(text)], for stores in which whose
    words they are decides.

    Raises:
        UsageError: the tokenizer does not decode a beginning of the sequence to a beginning of its text.
    """
    special = set(tokenizer.all_special_ids)
    spoken = np.array([int(i) not in special for i in ids])
    out = np.zeros(len(text) + 1, bool)  # one more: an empty text has a last character too
    at = 0
    changes = np.flatnonzero(np.diff(is_row & spoken)) + 1
    for start, end in pairwise([0, *changes.tolist(), len(ids)]):
        before = _decoded(tokenizer, ids[:end])
        if not text.startswith(before):
            raise UsageError(
                f"{type(tokenizer).__name__} does not decode the beginning of a text to what it is in the whole, so"
                " the words of a role cannot be found in it. Compare on a store without roles."
            )
        out[at : len(before)] = bool((is_row & spoken)[start])
        at = len(before)
    return out


def _read(tokenizer: Any, texts: list[str]) -> list[tuple[list[int], list[int]]]:
    """(ids, character after the last of each token) of every text."""
    found = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        (ids, [end for _, end in spans]) for ids, spans in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]
