"""The criteria tell what they claim: a perfect copier passes the copying ones, a random model none, and the trigram is
a distribution.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workbench.config import data_dir
from workbench.models.criteria import TARGETS, Criteria, met, table
from workbench.models.tokenizer import read_tokenizer
from workbench.models.trigram import InterpolatedTrigram

VOCAB = 512


@pytest.fixture(scope="module")
def criteria():
    return Criteria(read_tokenizer(data_dir() / "tokenizer"), ctx=64, n_text=8, n_copy=8, n_single=64, n_pairs=40)


class _Model:
    """Called like a Hugging Face model; predicts by a rule."""

    config = None

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.rule(input_ids))


def _copier(ids: torch.Tensor) -> torch.Tensor:
    """What followed the last earlier occurrence of the current token; else uniform."""
    logits = torch.zeros(*ids.shape, VOCAB)
    for b, row in enumerate(ids.tolist()):
        after: dict[int, int] = {}
        for t, token in enumerate(row):
            if token in after:
                logits[b, t, after[token]] = 10.0
            if t + 1 < len(row):
                after[token] = row[t + 1]
    return logits


def _uniform(ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros(*ids.shape, VOCAB)


def test_a_perfect_copier_passes_the_copying_criteria_only(criteria):
    row = criteria.measure(_Model(_copier))
    assert row["single_match"] == 1.0 and row["copy_gap"] > 5 and row["copy"] < 2.5
    passed = met(row, mamba=False)
    assert passed["copy_gap"] and passed["single_match"] and not passed["below_trigram"] and not passed["agreement"]


def test_a_uniform_model_passes_nothing(criteria):
    row = criteria.measure(_Model(_uniform))
    assert row["loss"] == pytest.approx(np.log(VOCAB), abs=1e-4) and abs(row["copy_gap"]) < 1e-4
    assert not any(met(row, mamba=True).values())


def test_guessing_among_seen_tokens_does_not_count_as_copying(criteria):
    def seen(ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*ids.shape, VOCAB)
        for t in range(ids.shape[1]):
            logits[:, t].scatter_(1, ids[:, : t + 1], 6.0)
        return logits

    assert abs(criteria.measure(_Model(seen))["copy_gap"]) < 0.05


def test_prompts_are_what_they_say(criteria):
    for prompt, successor in zip(criteria.single, criteria.successor, strict=True):
        (at,) = np.flatnonzero(prompt[1:-1] == prompt[-1])
        assert prompt[0] == 0 and len(prompt) == 65 and prompt[1 + at + 1] == successor and at < 32
    for size, (ordered, permuted) in zip((29, 37), criteria.copies, strict=True):
        assert (ordered[:, 1 : size + 1] == ordered[:, size + 1 :]).all()
        assert (np.sort(permuted[:, size + 1 :]) == np.sort(ordered[:, size + 1 :])).all() and (
            permuted != ordered
        ).any()
    assert 2.0 < criteria.trigram_loss < 4.0 and set(TARGETS) <= set(criteria.measure(_Model(_uniform)))


def test_trigram_probabilities_sum_to_one_and_follow_the_counts():
    rng = np.random.default_rng(0)
    tokens = rng.choice(7, 4000, p=np.r_[0.4, np.full(6, 0.1)])
    model = InterpolatedTrigram.fit(tokens, 9)
    every = np.arange(9)
    for a, b in ((0, 1), (6, 6), (8, 8), (0, 8)):
        p = model.probabilities(np.full(9, a), np.full(9, b), every)
        assert p.sum() == pytest.approx(1.0, abs=1e-9) and (p > 0).all()
    cycle = InterpolatedTrigram.fit(np.tile(np.arange(5), 200), 5)
    assert cycle.losses(np.tile(np.arange(5), 4)[None]).mean() < 0.3 < model.losses(tokens[None, :500]).mean()


def test_table_lists_every_snapshot(criteria):
    rows = {"step0": criteria.measure(_Model(_uniform)), "step9": criteria.measure(_Model(_uniform))}
    assert [line.split(" | ")[0] for line in table(rows).splitlines()[2:]] == ["| step0", "| step9"]
