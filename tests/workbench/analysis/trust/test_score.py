"""The one word: calibrated on planted worlds, absent where its evidence is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from workbench.analysis.trust.calibrate import HELD_OUT, area, by_word, evidence, fit, follows, reliability
from workbench.analysis.trust.score import FEATURES, WEIGHTS, scored, word_of

PAGE = Path(__file__).resolve().parents[4] / "docs" / "benchmarks-trust.md"


def test_the_score_tells_planted_latents_from_junk_in_a_world_it_never_saw() -> None:
    table = evidence(HELD_OUT[0], seed=300)
    planted = table["planted"].to_numpy()
    assert planted.sum() >= 50 and (~planted).sum() >= 20, "both kinds are there"
    score, words = scored(table)
    assert area(score, planted)[0] >= 0.9
    shuffled = np.random.default_rng(0).permutation(planted)
    assert area(score, shuffled)[0] < 0.7
    well = np.array([w == "well supported" for w in words])
    weak = np.array([w == "weakly supported" for w in words])
    assert planted[well].mean() >= 0.85 and planted[weak].mean() <= 0.5


def test_a_latent_follows_the_feature_it_was_made_from() -> None:
    rng = np.random.default_rng(0)
    planted = np.where(rng.random((400, 3)) < 0.1, rng.random((400, 3)) + 1, 0)
    codes = np.stack([2 * planted[:, 1], planted[:, 0] + planted[:, 2], np.zeros(400)], axis=1)
    r = follows(sp.csr_array(codes), planted)
    assert r[0] == pytest.approx(1) and 0.5 < r[1] < 0.9 and r[2] == 0


def test_the_fit_finds_what_tells_them_apart() -> None:
    rng = np.random.default_rng(0)
    planted = rng.random(400) < 0.5
    table = pd.DataFrame({name: rng.normal(size=400) for name in FEATURES}).assign(planted=planted)
    table["seed_r"] += 3 * planted
    weights = fit(table)
    assert weights.features["seed_r"] > 1 > abs(weights.features["agreement"])
    assert area(weights.score(table), planted)[0] > 0.95


def test_reliability_counts_what_is_planted_per_fifth() -> None:
    found = reliability(np.array([0.1, 0.15, 0.95, 1.0]), np.array([False, True, True, True]))
    assert found["n"].tolist() == [2, 0, 0, 0, 2]
    assert found["planted"].iloc[0] == 0.5 and found["planted"].iloc[4] == 1.0
    assert np.isnan(found["planted"].iloc[1]) and found["planted_low"].iloc[4] < 1


def test_no_word_without_every_piece_of_its_evidence() -> None:
    whole = dict(zip(FEATURES, (0.99, 0.9, 0.0), strict=True))
    table = pd.DataFrame([whole, *({**whole, name: np.nan} for name in FEATURES)])
    score, words = scored(table)
    assert words[0] == "well supported" and words[1:] == [None] * 3 and np.isnan(score[1:]).all()
    assert [word_of(x) for x in (0.9, 0.89, 0.5, 0.49, float("nan"))] == [
        *("well supported", "mixed", "mixed", "weakly supported"),
        None,
    ]


def test_the_page_shows_the_weights_in_use_and_that_they_tell_them_apart() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, weight in WEIGHTS.features.items():
        assert f"`{name}` {weight:.3f}" in page
    assert f"intercept {WEIGHTS.intercept:.3f}" in page
    found = re.search(r"\*\*AUROC ([0-9.]+)", page)
    assert found is not None and float(found[1]) >= 0.9


def test_a_word_is_calibrated_by_what_it_is_said_of() -> None:
    found = by_word(np.array([0.95, 0.99, 0.6, 0.1]), np.array([True, True, False, False]))
    assert found["well supported"]["value"] == 1 and found["well supported"]["n"] == 2
    assert found["mixed"]["value"] == 0 and found["weakly supported"]["n"] == 1
