"""Rules whose precision and recall are known, on held-out text and on near misses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.analysis.explain.holds import pair_keys
from workbench.analysis.latents.encoded import Codes, from_rows
from workbench.analysis.trust.labels import label_scores

VOCAB = [f"w{i} " for i in range(60)]
V = len(VOCAB)
SEQUENCES, LENGTH = 40, 20


def _codes() -> Codes:
    """Token 5 once in every sequence, after token 7 in every second one. Latent 0 fires on token 5, latent 1 only where
    7 is ahead of it, latent 2 never.
    """
    ids = np.random.default_rng(0).integers(10, V, (SEQUENCES, LENGTH))
    ids[:, 9], ids[::2, 8] = 5, 7
    values = np.zeros((SEQUENCES, LENGTH, 3), np.float32)
    values[:, 9, 0] = 1
    values[::2, 9, 1] = 1
    seq, pos = (a.ravel() for a in np.indices((SEQUENCES, LENGTH)))
    indices = np.tile(np.arange(3), (SEQUENCES * LENGTH, 1))
    return from_rows(3, ids.ravel(), seq, pos, values.reshape(-1, 3), indices)


def _rules(*rules: tuple[str, list[int]]) -> pd.DataFrame:
    family, keys = zip(*rules, strict=True)
    return pd.DataFrame({"latent": range(len(rules)), "family": family, "keys": list(keys), "where": ""})


def test_a_rule_that_says_it_all_and_one_that_only_names_the_token() -> None:
    codes = _codes()
    every = np.ones(codes.n_tokens, bool)
    s = label_scores(codes, _rules(("token", [5]), ("token", [5]), ("token", [5])), VOCAB, every)
    assert s.precision[:2] == pytest.approx([1.0, 0.5]) and s.recall[:2] == pytest.approx([1.0, 1.0])
    assert s.f1[:2] == pytest.approx([1.0, 2 / 3])
    assert s.f1_chance[:2] == pytest.approx([40 / 800, 2 * (40 * 20 / 800) / 60])
    assert s.hard_accuracy[:2] == pytest.approx([1.0, 0.5])
    assert s.hard_precision[:2] == pytest.approx([1.0, 0.5])  # the silent ones of the same token look most like it
    assert s.n_hard.tolist() == [40, 20, 0] and s.n_strong.tolist() == [40, 20, 0] and s.n_rule.tolist() == [40] * 3
    assert s.precision[2] == 0 and np.isnan(s.recall[2]) and np.isnan(s.hard_precision[2])


def test_a_pair_tells_near_misses_apart() -> None:
    codes = _codes()
    pairs = [7 * (V + 1) + 5]
    assert pairs[0] in pair_keys(codes, V)
    s = label_scores(codes, _rules(("token", [5]), ("pair", pairs)), VOCAB, np.ones(codes.n_tokens, bool))
    assert (s.precision[1], s.recall[1], s.hard_precision[1], s.hard_recall[1], s.hard_accuracy[1]) == (1,) * 5


def test_a_rule_that_holds_nowhere_has_no_precision_and_f1_zero() -> None:
    codes = _codes()
    s = label_scores(codes, _rules(("token", [9])), VOCAB, np.ones(codes.n_tokens, bool))
    assert np.isnan(s.precision[0]) and (s.f1[0], s.recall[0], s.n_rule[0]) == (0, 0, 0)
    assert s.hard_accuracy[0] == 0.5 and np.isnan(s.hard_precision[0])


def test_only_the_rows_given_count() -> None:
    codes = _codes()
    first = codes.seq < 10
    s = label_scores(codes, _rules(("token", [5]), ("token", [5])), VOCAB, first)
    assert s.n_rule.tolist()[:2] == [10, 10] and s.n_strong.tolist()[:2] == [10, 5]


def test_a_latent_without_a_rule_has_no_number() -> None:
    codes, table = _codes(), _rules(("token", [5]), ("token", [5]))
    table.loc[1, "family"] = None
    s = label_scores(codes, table, VOCAB, np.ones(codes.n_tokens, bool))
    assert np.isnan(s.precision[1]) and np.isnan(s.hard_precision[1]) and s.n_rule[1] == 0
