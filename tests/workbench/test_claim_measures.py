"""What claims read from results: handmade comparisons and evolutions in which the effect is there, and in which it is
not.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.claims import all_claims
from workbench.claims.base import verdict
from workbench.claims.rules import BY_CONSTRUCTION, CONTRADICTED, INCONCLUSIVE, SUPPORTED

BY_ID = {c.id: c for c in all_claims()}
LAYERS = {"ab": 3, "ba": 4}


def comparison(means: dict[str, float], n: int = 60) -> Any:
    """A lab whose comparison has these mean correlations, latent by latent with a little noise."""
    rng = np.random.default_rng(0)
    frames = []
    for series, mean in means.items():
        for direction, layers in LAYERS.items():
            for layer in range(layers):
                r = mean + 0.02 * rng.standard_normal(n) + 0.01 * layer
                frames.append(
                    pd.DataFrame(
                        {
                            "direction": direction,
                            "series": series,
                            "layer": layer,
                            "latent": np.arange(n),
                            "n_fired": np.geomspace(30, 3000, n).astype(int),
                            "r": r,
                        }
                    )
                )
    shifts = pd.DataFrame(
        [
            {"direction": d, "shift": s, "mean": 0.6 if s == 0 else 0.3 - 0.02 * abs(s) + 0.001 * s, "n": n}
            for d in LAYERS
            for s in (-2, -1, 0, 1, 2)
        ]
    )
    nulls = pd.DataFrame(
        [
            {"direction": d, "fired_from": lo, "fired_to": hi, "n": n}
            for d in LAYERS
            for lo, hi in ((30, 300), (300, 4000))
        ]
    )
    tables = {"baselines": pd.concat(frames, ignore_index=True), "shifts": shifts, "nulls": nulls, "depth": shifts}
    depth = {"value": 0.5, "low": 0.45, "high": 0.55, "n": 900}
    flat = {"value": 0.03, "low": -0.03, "high": 0.09, "n": 900}
    numbers = {d: {"depth_rank_correlation": depth, "depth_untrained": flat} for d in LAYERS}
    records = SimpleNamespace(
        table=lambda name: tables[name],
        metadata={"series": list(means), "missing": {"untrained": "no untrained dictionaries"}},
        manifest=SimpleNamespace(numbers=numbers),
    )
    return SimpleNamespace(comparison=lambda: records)


TC, NULL = "token-conditional", "token-conditional null"
AS_MEASURED = {  # what the bundled models give
    "cross": 0.63,
    "same-token": 0.51,
    TC: 0.37,
    NULL: 0.08,
    "untrained": 0.72,
    "untrained same-token": 0.72,
    f"untrained {TC}": 0.11,
    f"untrained {NULL}": 0.06,
    f"model seed {TC}": 0.46,
    f"model seed {NULL}": 0.075,
    f"sae seed {TC}": 0.58,
    f"sae seed {NULL}": 0.075,
    f"random partner {TC}": 0.2,
    f"random partner {NULL}": 0.08,
    "neurons": 0.33,
    "neurons shift": 0.04,
    f"neurons {TC}": 0.22,
    f"neurons {NULL}": 0.07,
}
SIMILARITY = (
    "alignment",
    "architecture-below-seed",
    "depth",
    "latents-above-neurons",
    "model-seed-below-sae-seed",
    "neurons-above-chance",
    "training-matters",
)


@pytest.mark.parametrize("name", SIMILARITY)
def test_claims_of_similarity_read_the_comparison_given_the_token(name: str) -> None:
    claim = BY_ID[f"universality.{name}"]
    found = claim.measure(comparison(AS_MEASURED))
    assert verdict(claim, found) == SUPPORTED, found
    if name not in ("alignment", "depth"):
        level = comparison(dict.fromkeys(AS_MEASURED, 0.4))  # raw or given the token, all alike
        assert verdict(claim, claim.measure(level)) != SUPPORTED
        assert {"raw", "same-token", "token-conditional"} <= set(found.more)
        assert claim.measure(comparison({"cross": 0.6})).untestable


def test_a_share_that_is_there_raw_only_is_contradicted() -> None:
    claim = BY_ID["universality.very-similar-share"]
    found = claim.measure(comparison(AS_MEASURED))
    assert verdict(claim, found) == CONTRADICTED and found.more["untrained raw"].value > 0.5
    assert verdict(claim, claim.measure(comparison(AS_MEASURED | {TC: 0.9}))) == SUPPORTED


def test_chance_by_frequency_looks_at_every_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.claims.universality import chance_by_frequency

    monkeypatch.setattr(chance_by_frequency, "MIN_LATENTS", 20)
    claim = BY_ID["universality.chance-by-frequency"]
    assert verdict(claim, claim.measure(comparison(AS_MEASURED))) == SUPPORTED
    assert verdict(claim, claim.measure(comparison(AS_MEASURED | {TC: 0.08}))) != SUPPORTED


def transplants(repaired: float, other: float, r: float, given: float, n: int = 80) -> Any:
    """A lab whose transplants, four layers a model, have these medians and rank correlations."""
    rng, made = np.random.default_rng(2), []
    for model in ("mini-pythia", "mini-mamba"):
        for layer in range(4):
            noise = 0.02 * rng.standard_normal(6)
            summary = pd.DataFrame(
                {"arm": ["transplant", "other"], "n": n, "median": [repaired + noise[0], other + noise[1]]}
            )
            order = pd.DataFrame(
                [
                    {"predictor": x, "arm": arm, "value": value + e}
                    for (x, arm, value), e in zip(
                        [
                            ("r", "transplant", r),
                            ("r", "other", 0.0),
                            ("r_given_token", "transplant", given),
                            ("r_given_token", "other", 0.0),
                        ],
                        noise[2:],
                        strict=True,
                    )
                ]
            )
            tables = {"summary": summary, "order": order}
            about = {"b": {"dictionary": f"{model}.L{layer}R-8x"}}
            made.append(SimpleNamespace(metadata=about, table=tables.__getitem__))
    return SimpleNamespace(transplants=lambda: made)


@pytest.mark.parametrize(
    ("name", "there", "gone", "other_way"),
    [
        ("transplant-repairs", (0.5, 0.05, 0.4, 0.6), (0.5, 0.5, 0.4, 0.6), (0.02, 0.05, 0.4, 0.6)),
        ("correlation-foretells-transplants", (0.5, 0.05, 0.4, 0.6), (0.5, 0.05, 0.18, 0.6), (0.5, 0.05, -0.3, 0.6)),
        ("given-token-foretells-better", (0.5, 0.05, 0.4, 0.6), (0.5, 0.05, 0.4, 0.45), (0.5, 0.05, 0.6, 0.4)),
    ],
)
def test_claims_of_transplants_need_repairs_that_others_do_not_make(name: str, there, gone, other_way) -> None:
    claim = BY_ID[f"universality.{name}"]
    found = claim.measure(transplants(*there))
    assert verdict(claim, found) == SUPPORTED and found.effect.n == 8, found
    assert verdict(claim, claim.measure(transplants(*gone))) != SUPPORTED
    assert verdict(claim, claim.measure(transplants(*other_way))) == CONTRADICTED
    assert claim.measure(transplants(*there, n=5)).untestable


class Evolution:
    """Ten snapshots; some latents there from the start that dip, others that emerge; statistics and curves given."""

    def __init__(self, seed: int, effect: bool = True):
        rng = np.random.default_rng(seed)
        S, F = 10, 400
        steps = np.array([0, 16, 64, 256, 512, 1024, 1216, 2560, 4608, 9000])
        self.steps, self.id = steps, f"claims.s{seed}"
        old = np.array([0.9, 0.85, 0.8, 0.6, 0.5, 0.45, 0.5, 0.6, 0.75, 1]) if effect else np.linspace(0.9, 0.5, S)
        new = np.linspace(0.02, 1, S)
        curves = np.where(np.arange(F)[:, None] < F // 2, old, new)
        self._norms = np.clip(curves + 0.02 * rng.standard_normal((F, S)), 1e-3, None)
        self.table = pd.DataFrame(
            {
                "latent": np.arange(F),
                "alive": True,
                "class": np.where(np.arange(F) < F // 2, "initialisation", "emergent"),
                "emergence_0.5_index": np.where(np.arange(F) < F // 2, 0, 5),
            }
        )
        bigram = np.array([5, 4, 3, 2, 1, 0.5, 0.8, 1.2, 1.5, 1.8]) if effect else np.linspace(5, 0.1, S)
        self.phases = pd.DataFrame(
            {
                "source": [f"step{s}" for s in steps],
                "step": steps,
                "loss": np.linspace(7, 2, S),
                "ce_unigram": 5.0,
                "ce_bigram": 3.5,
                "h1": 5.0,
                "h2": 3.5,
                "ev": 0.85,
                "kl_unigram": [4, 2, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
                "kl_bigram": [6, 5, 4, 3, 1, 0.3, 0.2, 0.2, 0.2, 0.2],
                "kl_to_bigram": bigram,
                "accuracy_induction": [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.9, 1.0, 1.0],
                "dimensionality": [50, 40, 20, 10, 15, 20, 30, 40, 45, 48] if effect else np.linspace(10, 50, S),
            }
        )
        gap = 3.0 if effect else 0.0
        rows = [
            (c, gap + 0.1 * rng.standard_normal(), 0.1)
            for c in (
                "complex latents emerge later (Spearman, firing frequency partialled out)",
                "token latents emerge before previous-token latents",
                "previous-token latents emerge before induction latents",
                "token latents emerge before induction latents",
                "token latents emerge before context latents",
                "induction latents emerge before context latents",
                "emergence by decoder norm agrees with the norm-free emergence (Spearman)",
                "decoder directions turn where the n-gram phase ends (within one snapshot)",
            )
        ]
        self.statistics = pd.DataFrame(rows, columns=["claim", "value", "null_high"]).assign(verdict="found", note="")
        kept = 0.9 if effect else 0.05
        self.attribution = pd.DataFrame(
            [
                {"task": t, "source": f"step{s}", "mode": "keep", "ranking": r, "k": k, "share": share}
                for t in ("induction", "agreement")
                for s in steps[-3:]
                for k in (8, 32, 64)
                for r, share in (
                    ("attribution", kept + 0.01 * rng.standard_normal()),
                    ("magnitude", 0.3),
                    ("random", 0.05),
                    ("frequency", 0.1),
                )
            ]
        )
        self.attribution_latents = pd.DataFrame(
            {"task": "induction", "source": "step9000", "latent": np.arange(40), "attribution": np.linspace(1, 0.1, 40)}
        )

    def norms(self, latents: Any, kind: str = "training") -> np.ndarray:
        return self._norms[np.asarray(latents)]

    def cosines(self, latent: int) -> np.ndarray:
        S = len(self.steps)
        side = np.arange(S) >= 5
        return np.where(side[:, None] == side, 0.9, 0.1)


def lab(effect: bool = True) -> Any:
    made = {s: Evolution(s, effect) for s in range(3)}
    return SimpleNamespace(evolution=lambda seed=0: made[seed], each_seed=lambda: range(3), seeds=3, quick=True)


ELSEWHERE = ("probe", "single", "trajectories")  # these read more than the evolution's own tables
READ = [c for c in all_claims("evolution") if c.needs == ("evolution",) and not any(e in c.id for e in ELSEWHERE)]
OPEN = {"turning-point", "emergent-latents"}


@pytest.mark.parametrize("claim_id", [c.id for c in READ])
def test_claims_of_training_see_an_effect_and_its_absence(claim_id: str) -> None:
    claim, name = BY_ID[claim_id], claim_id.partition(".")[2]
    there, absent = (verdict(claim, claim.measure(lab(effect))) for effect in (True, False))
    if claim.construction:
        assert there == absent == BY_CONSTRUCTION
    elif name in OPEN:
        assert there == absent == INCONCLUSIVE
    else:
        assert there == SUPPORTED, claim.measure(lab())
        if name not in (
            "axes",
            "unigram-before-bigram",
            "n-grams-before-induction",
            "two-groups",
            "latents-precede-induction",
        ):
            assert absent != SUPPORTED, claim.measure(lab(False))
