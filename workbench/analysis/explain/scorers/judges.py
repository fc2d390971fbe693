"""Who is asked whether a label fits: the rule itself, a language model behind an endpoint, or one on this machine.

A judge answers three kinds of question, each None where it gave no readable answer:

- ``fits``: for each excerpt, is the latent active on some token of it (detection), or are all marked tokens rightly
  marked (fuzzing)?
- ``simulate``: for each token of an excerpt, an activation from 0 to 10.

A score speaks of the label *and* of the judge: a weak judge gives chance to every label, good or bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from workbench.analysis.explain import prompts as ask
from workbench.analysis.explain.endpoint import Completer, Local
from workbench.analysis.explain.holds import Rules, pair_keys
from workbench.analysis.explain.language_model import Notebook
from workbench.analysis.explain.scorers.samples import LEVELS, Sample
from workbench.analysis.latents.encoded import Codes

TOGETHER = 5  # excerpts in one question, as delphi's default has them


class Judge(Protocol):
    """Whoever answers about the label of one latent."""

    name: str

    def fits(self, latent: int, label: str, samples: Sequence[Sample]) -> list[bool | None]: ...

    def simulate(self, latent: int, label: str, sample: Sample) -> np.ndarray | None: ...


class RuleJudge:
    """The rule as its own judge: an excerpt fits where the rule holds on some token (on every marked token), and the
    simulated activation is 10 where it holds. It cannot misread a label, and knows only labels that are rules.
    """

    name = "the rule itself"

    def __init__(self, codes: Codes, vocab: list[str], labels: pd.DataFrame):
        self.rules, self.labels = Rules(codes, vocab), labels.set_index("latent")
        self.pairs = pair_keys(codes, len(vocab))
        self._last: tuple[int, np.ndarray] = (-1, np.zeros(0, bool))

    def holds(self, latent: int) -> np.ndarray:
        """Bool [N]: where the rule of a latent holds."""
        if self._last[0] != latent:
            row = self.labels.loc[latent]
            keys = [int(k) for k in row["keys"]]
            keys = self.pairs[keys].tolist() if row["family"] == "pair" else keys
            self._last = latent, self.rules.holds(str(row["family"]), keys, str(row["where"] or ""))
        return self._last[1]

    def fits(self, latent: int, label: str, samples: Sequence[Sample]) -> list[bool | None]:
        """One answer per excerpt."""
        holds = self.holds(latent)
        return [
            bool(holds[s.rows].any()) if s.marked is None else bool(holds[s.rows][s.marked].all() and s.marked.any())
            for s in samples
        ]

    def simulate(self, latent: int, label: str, sample: Sample) -> np.ndarray:
        """10 where the rule holds, else 0."""
        return np.where(self.holds(latent)[sample.rows], LEVELS, 0).astype(np.float64)


class ModelJudge:
    """A language model that is asked in words; every answer is kept (:class:`Notebook`), so nothing is asked twice.

    An endpoint names the excerpts that fit, a few at a time. A model on this machine is asked about one excerpt at a
    time, and the more probable of "yes" and "no" counts; simulation is Bills et al.'s all at once: the expected value
    of its distribution over the digits after each token. An endpoint, which shows no probabilities of what it was
    given, writes the numbers instead.
    """

    def __init__(self, completer: Completer, notebook: Notebook):
        self.completer, self.notebook, self.name = completer, notebook, completer.name

    def fits(self, latent: int, label: str, samples: Sequence[Sample]) -> list[bool | None]:
        """One answer per excerpt, None for all of a question whose answer cannot be read."""
        if isinstance(self.completer, Local):
            return [self._one(latent, label, s) for s in samples]
        said: list[bool | None] = []
        for i in range(0, len(samples), TOGETHER):
            part = samples[i : i + TOGETHER]
            marked = part[0].marked is not None
            question = (ask.fuzz_prompt if marked else ask.fits_prompt)(label, [s.text for s in part])
            try:
                named = ask.read_detection(
                    self.notebook.ask(self.completer, "fuzz" if marked else "detect", latent, question), len(part)
                )
            except ask.UnreadableAnswer:
                said += [None] * len(part)
            else:
                said += [k in named for k in range(len(part))]
        return said

    def _one(self, latent: int, label: str, sample: Sample) -> bool | None:
        assert isinstance(self.completer, Local)
        question, model = ask.yes_prompt(label, sample.text, marked=sample.marked is not None), self.completer
        return self.notebook.ask(model, "yes", latent, question, lambda: model.yes(question)) == "yes"

    def simulate(self, latent: int, label: str, sample: Sample) -> np.ndarray | None:
        """[tokens] activations from 0 to 10."""
        model, tokens = self.completer, sample.tokens
        try:
            if isinstance(model, Local):
                question = ask.levels_prompt(label, tokens)
                said = self.notebook.ask(model, "levels", latent, question, lambda: model.levels(question, tokens))
            else:
                said = self.notebook.ask(model, "simulate", latent, ask.simulate_prompt(label, tokens))
            return ask.read_levels(said, len(tokens))
        except ask.UnreadableAnswer:
            return None
