"""The exam of one latent: excerpts on which it fires, excerpts on which it is silent, and marks on tokens.

Detection asks of a whole excerpt, fuzzing of its marked tokens (Paulo et al. 2024, *Automatically Interpreting Millions
of Features in Large Language Models*, arXiv 2410.13928). As in EleutherAI's delphi (eai-delphi 0.1.3), right marks are
on tokens with at least 0.3 of the excerpt's largest activation, and wrong marks are on as many other tokens as the
latent fires on in an excerpt on average, rounded up. Where delphi puts one wrong mark at a fixed place, all are drawn.

All excerpts come from the sequences that no label was made from (every other one).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.analysis.explain.language_model import span, zero_rows
from workbench.analysis.latents.encoded import Codes
from workbench.results.characters import whole_characters

MARK = 0.3  # of an excerpt's largest activation, from which a token is rightly marked (delphi's default)
CANDIDATES = 2000  # silent windows that near misses are looked for among
LEVELS = 10  # activations are simulated as whole numbers from 0 to this (Bills et al. 2023)


@dataclass(frozen=True)
class Sample:
    """One excerpt. ``rows``: its rows of the codes; ``values`` the latent's activations on them; ``marked`` what
    fuzzing marks; ``truth`` what the right answer is.
    """

    rows: np.ndarray
    tokens: tuple[str, ...]
    values: np.ndarray
    truth: bool
    marked: np.ndarray | None = None

    @property
    def text(self) -> str:
        """The excerpt, neighbouring marked tokens together between << and >>."""
        if self.marked is None:
            return "".join(self.tokens)
        out, on = [], False
        for token, mark in zip(self.tokens, self.marked.tolist(), strict=True):
            out.append(("<<" if mark and not on else ">>" if on and not mark else "") + token)
            on = mark
        return "".join(out) + (">>" if on else "")


@dataclass(frozen=True)
class Exam:
    """Excerpts of one latent; ``top`` is its largest activation."""

    latent: int
    top: float
    positives: list[Sample]
    zeros: list[Sample]  # at random
    hard: list[Sample]  # silent ones that share most tokens with positives
    seed: int = 0

    def detection(self) -> list[Sample]:
        """Positives and random zeros."""
        return [*self.positives, *self.zeros]

    def hard_detection(self) -> list[Sample]:
        """Positives and near misses."""
        return [*self.positives, *self.hard]

    def fuzzing(self) -> list[Sample]:
        """Positives with right marks, zeros with wrong ones."""
        return [*self._right(), *(self._wrong(s) for s in self.zeros)]

    def fuzzing_active(self) -> list[Sample]:
        """Positives with right marks, and the same excerpts with wrong ones where they have other tokens to mark."""
        wrong = [self._wrong(s) for s in self.positives if (s.values < _threshold(s)).any()]
        return [*self._right(), *wrong]

    def levels(self, sample: Sample) -> np.ndarray:
        """Activations as whole numbers 0 … 10 of the latent's largest, rounded up."""
        return np.clip(np.ceil(LEVELS * sample.values / self.top), 0, LEVELS).astype(int)

    def _right(self) -> list[Sample]:
        return [Sample(s.rows, s.tokens, s.values, True, s.values >= _threshold(s)) for s in self.positives]

    def _wrong(self, sample: Sample) -> Sample:
        """As many marks as positives have active tokens on average, on tokens that are not to be marked."""
        n = math.ceil(np.mean([(s.values > 0).sum() for s in self.positives]))
        others = (
            np.flatnonzero(sample.values < _threshold(sample)) if sample.values.any() else np.arange(len(sample.rows))
        )
        rng = np.random.default_rng([self.seed, 7, self.latent, int(sample.rows[0])])
        marked = np.zeros(len(sample.rows), bool)
        marked[rng.permutation(others)[:n]] = True
        return Sample(sample.rows, sample.tokens, sample.values, False, marked)


def _threshold(sample: Sample) -> float:
    return MARK * float(sample.values.max())


def gather_exams(
    codes: Codes, vocab: list[str], latents: Sequence[int], *, examples: int = 20, window: int = 32, seed: int = 0
) -> list[Exam]:
    """Exams of the latents that have at least half of ``examples`` excerpts of each kind on the held-out half.

    Args:
        examples: excerpts on which a latent fires (from its weakest firing to its strongest), and as many silent ones
            of either kind. window: tokens of an excerpt.
    """
    held_out = np.unique(codes.seq, return_inverse=True)[1] % 2 == 1
    found = []
    for latent in latents:
        rng = np.random.default_rng([seed, 3, latent])
        rows, values = codes.of(latent)
        rows, values = rows[held_out[rows]], values[held_out[rows]]
        if len(rows) < examples // 2:
            continue
        active = np.zeros(codes.n_tokens, np.float32)
        active[codes.of(latent)[0]] = codes.of(latent)[1]
        order = np.argsort(values, kind="stable")
        chosen = rows[order][np.linspace(0, len(rows) - 1, min(examples, len(rows))).astype(int)]
        peaks = _apart(codes, np.unique(chosen), window)
        zeros = zero_rows(codes, active, held_out, max(CANDIDATES, len(peaks)), window, rng)
        if len(peaks) < examples // 2 or len(zeros) < len(peaks):
            continue
        hard = _near(codes, peaks, zeros[:CANDIDATES], window)

        def cut(row: int, truth: bool, active: np.ndarray = active) -> Sample:
            s = span(codes, row, window)
            tokens = tuple(whole_characters([vocab[t] for t in codes.ids[s].tolist()]))
            return Sample(np.arange(s.start, s.stop), tokens, active[s], truth)

        found.append(
            Exam(
                int(latent),
                float(active.max()),
                [cut(r, True) for r in peaks],
                [cut(r, False) for r in zeros[: len(peaks)]],
                [cut(r, False) for r in hard],
                seed,
            )
        )
    return found


def _apart(codes: Codes, rows: np.ndarray, window: int) -> list[int]:
    """Rows whose windows are not the same one: at least half a window apart, or in different sequences."""
    kept: list[int] = []
    for row in rows.tolist():
        if not kept or codes.seq[row] != codes.seq[kept[-1]] or row - kept[-1] > window // 2:
            kept.append(row)
    return kept


def _near(codes: Codes, peaks: Sequence[int], zeros: Sequence[int], window: int) -> list[int]:
    """As many zeros as peaks, those whose window shares most with a peak's: the share of its distinct tokens, and one
    more where the token the latent fires on is among them. No embedding model is asked.
    """
    there = [(set(codes.ids[span(codes, p, window)].tolist()), int(codes.ids[p])) for p in peaks]
    likeness = []
    for row in zeros:
        own = set(codes.ids[span(codes, row, window)].tolist())
        likeness.append(max(len(own & words) / len(own | words) + (peak in own) for words, peak in there))
    return [zeros[i] for i in np.argsort(-np.array(likeness), kind="stable")[: len(peaks)]]
