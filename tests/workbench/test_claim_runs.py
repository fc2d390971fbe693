"""Claims over training runs and over a run without a skill: made-up runs whose answer is known, with the effect and
without.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.workbench.bridges import bridge, tiny
from tests.workbench.test_claim_open import Once
from workbench.claims import all_claims
from workbench.claims.base import verdict
from workbench.claims.evolution import over_runs, without_skill
from workbench.claims.rules import CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE, SUPPORTED
from workbench.config import read_recipe
from workbench.models.pretrain import PretrainRecipe

BY_ID = {c.id: c for c in all_claims("evolution")}
STEPS = np.array([0, 16, 64, 256, 512, 768, 896, 1024, 1088, 1152, 1216, 1344, 1664])


def run(unigram: float, bigram: float, away: float, copying: float, previous: float, induction: float) -> pd.DataFrame:
    """Snapshots of a run in which each event happens at the given step."""

    def rise(at: float, sharp: float = 12.0) -> np.ndarray:
        return 1 / (1 + np.exp(-sharp * np.log2(np.maximum(STEPS, 1) / at)))

    return pd.DataFrame(
        {
            "step": STEPS,
            "kl_unigram": 3 * (1 - rise(unigram)) + 0.1,
            "kl_bigram": 2 * (1 - rise(bigram)) + 0.1,
            "kl_to_bigram": np.abs(np.log2(np.maximum(STEPS, 1) / away)),
            "accuracy": rise(copying),
            "previous": 0.1 + 0.6 * rise(previous),
            "induction": 0.05 + 0.7 * rise(induction),
        }
    )


def runs(monkeypatch: pytest.MonkeyPatch, *frames: pd.DataFrame) -> Any:
    monkeypatch.setattr(over_runs, "tables", lambda lab: {f"r{i}": f for i, f in enumerate(frames)})
    return SimpleNamespace()


def said(name: str, lab: Any) -> str:
    claim = BY_ID[f"evolution.{name}"]
    return verdict(claim, claim.measure(lab))


ORDERED = (
    "unigram-before-bigram-over-runs",
    "n-grams-before-induction-over-runs",
    "previous-token-heads-first-over-runs",
)


def test_an_order_that_every_run_has_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = runs(monkeypatch, *(run(60, 500 * f, 760, 1150 * f, 880, 1150 * f) for f in (1.0, 1.05, 0.95, 1.1)))
    assert [said(name, lab) for name in ORDERED] == [SUPPORTED] * 3
    found = BY_ID["evolution.previous-token-heads-first-over-runs"].measure(lab)
    assert found.effect.n == 4 and 2 <= found.effect.value <= 4
    assert "step 896 and 1,152" in found.note


def test_an_order_that_is_turned_round_is_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = runs(monkeypatch, *(run(500, 60, 1200, 60 * f, 1250, 600 * f) for f in (1.0, 1.05, 0.95, 1.1)))
    assert [said(name, lab) for name in ORDERED] == [CONTRADICTED] * 3


def test_an_order_that_differs_from_run_to_run_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = runs(
        monkeypatch,
        run(60, 60, 760, 500, 600, 1200),
        run(500, 60, 500, 760, 1200, 600),
        run(60, 500, 1200, 500, 900, 900),
    )
    assert {said(name, lab) for name in ORDERED} == {INCONCLUSIVE}


def test_runs_that_never_copy_or_look_back_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = run(60, 500, 760, 1e6, 1e6, 1e6)
    lab = runs(monkeypatch, frame, frame)
    assert [said(name, lab) for name in ORDERED[1:]] == [NOT_TESTABLE] * 2


def test_the_runs_differ_in_what_they_are_said_to_and_keep_snapshots_where_copying_forms() -> None:
    recipes = [read_recipe(PretrainRecipe, name) for name in over_runs.RUNS]
    assert len({(r.seed, r.corpus.seed) for r in recipes}) == len(recipes)
    for r in recipes:
        dense = [s for s in r.saved_steps if 1088 <= s <= 1216]
        assert set(np.diff(dense)) == {16} and r.steps == 1664
    without = read_recipe(PretrainRecipe, without_skill.WITHOUT)
    assert without.corpus.tiled_share == without.corpus.snippet_share == 0 and without.corpus.agreement_share > 0
    again = read_recipe(PretrainRecipe, without_skill.AGAIN)
    assert again.seed == without.seed == 0 and again.corpus.seed != 0, "the same initialisation, other batches"


# --- without a skill -------------------------------------------------------------------------------------------------

N = 300
VANISH = "evolution.latents-vanish-without-the-skill"


def vanished(monkeypatch: pytest.MonkeyPatch, copying: float, others: float, skill: float = 0.5) -> Any:
    """Dictionaries in which the first 32 latents do the copying and lose a share of what they have, others another."""
    monkeypatch.setattr(without_skill, "copies", lambda lab, m, r: skill if m == without_skill.WITHOUT else 0.95)

    def measured(lab: Any) -> pd.DataFrame:
        rows = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            again = 0.4 + 0.05 * rng.standard_normal(N)
            share = np.where(np.arange(N) < 32, copying, others) + 0.02 * rng.standard_normal(N)
            gain = np.where(np.arange(N) < 32, 5.0, 0.0) + rng.random(N)
            plain = np.where((np.arange(N) >= 100) & (np.arange(N) < 140), 5.0, 0.0) + rng.random(N)
            row = without_skill.judged(
                {"again": again, "without": again * (1 - share)},
                gain,
                plain,
                rng.integers(30, 500, N).astype(float),
                seed,
            )
            rows.append({"seed": seed, **row, "against another initialisation": row["copying"]})
        return pd.DataFrame(rows)

    monkeypatch.setattr(without_skill, "measured", measured)
    return SimpleNamespace(once=Once(), variant=lambda name: name, quick=True)


def test_latents_that_vanish_with_their_skill_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = vanished(monkeypatch, copying=0.9, others=0.1)
    found = BY_ID[VANISH].measure(lab)
    assert verdict(BY_ID[VANISH], found) == SUPPORTED and found.effect.value == pytest.approx(0.8, abs=0.02)
    assert found.more["told"].value > 0.99 and found.more["gone"].value == pytest.approx(32 / N, abs=0.01)


def test_latents_that_stay_and_latents_that_all_vanish_are_not_the_skills(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(VANISH.partition(".")[2], vanished(monkeypatch, copying=0.1, others=0.1)) == CONTRADICTED
    assert said(VANISH.partition(".")[2], vanished(monkeypatch, copying=0.9, others=0.9)) == CONTRADICTED


def test_a_run_that_copies_all_the_same_lacks_no_skill(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(VANISH.partition(".")[2], vanished(monkeypatch, 0.9, 0.1, skill=0.9)) == NOT_TESTABLE


def test_told_is_the_area_under_the_curve() -> None:
    score, gone = np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False])
    assert without_skill.told(score, gone) == pytest.approx(0.75)  # of four pairs one is in the wrong order
    assert np.isnan(without_skill.told(score, np.zeros(4, bool)))


def test_the_gain_of_a_latent_is_what_a_small_part_of_it_adds_to_the_loss() -> None:
    """Against a finite difference: a thousandth of each latent is taken out of the residual stream."""
    from sae import TopKSAE

    model = bridge(tiny("neox"))
    hook = "blocks.1.hook_resid_post"
    torch.manual_seed(0)
    dictionary = TopKSAE(model.cfg.d_model, 24, 4)
    with torch.no_grad():
        for p in dictionary.parameters():
            p.copy_(0.3 * torch.randn_like(p))
    windows = np.random.default_rng(0).integers(0, model.cfg.d_vocab, (3, 11))
    found = without_skill.gain(model, hook, dictionary, windows, slice(4, None))
    ids = torch.as_tensor(windows)

    def loss(latent: int, share: float) -> float:
        def less(value: torch.Tensor, hook: Any) -> torch.Tensor:
            f = dictionary.encode(value.flatten(0, 1)).unflatten(0, value.shape[:2])[..., latent]
            f = f * share
            f[:, 0] = 0
            return value - f[..., None] * dictionary.W_dec[latent]

        with torch.no_grad():
            logits = model.run_with_hooks(ids, return_type="logits", fwd_hooks=[(hook, less)]).double()
            each = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        return float(each[:, 4:].sum())

    slopes = np.array([(loss(i, 1e-2) - loss(i, -1e-2)) / 2e-2 for i in range(24)])
    assert np.abs(slopes).max() > 1e-2
    np.testing.assert_allclose(found, slopes, atol=2e-3 * np.abs(slopes).max())
