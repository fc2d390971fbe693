"""Which concepts come first in which architecture: both claims on made-up curves, with the effect and without it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from tests.workbench.test_claim_open import said
from workbench.claims import all_claims
from workbench.claims.base import verdict
from workbench.claims.rules import NOT_TESTABLE, SUPPORTED

ORDER, CONTEXT = "universality.same-order-in-training", "universality.context-later-in-mamba"
BY_ID = {c.id: c for c in all_claims("universality")}
STEPS = [0, 16, 64, 256, 1024, 8192]
K, F = len(STEPS), 240


def lab_of(*, lag: float = 1.0, context: float = 0.0, order: float = 1.0, shared: int = F, seeds: int = 3) -> Any:
    """Crosscoders over two trainings: the Mamba's latents ``lag`` doublings later, by ``context`` more the more the
    token leaves open; ``order`` is how much of the Transformer's order it keeps.
    """
    made = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        left, born, own = rng.random(F), rng.uniform(4, 8, F), rng.uniform(4, 8, F)
        other = order * born + (1 - order) * own + lag + context * (left - left.mean())
        time = np.log2(np.maximum(STEPS, 8))
        curves = [
            np.clip(1 / (1 + np.exp(-3 * (time - at[:, None]))) + 0.05 * rng.standard_normal((F, K)), 0, None)
            for at in (born, other)
        ]
        models = [
            {"model": m, "hook": "h", "sources": list(range(i * K, (i + 1) * K)), "steps": STEPS}
            for i, m in enumerate(("mini-pythia", "mini-mamba"))
        ]
        table = pd.DataFrame({"latent": np.arange(F), "v_token": 1 - left, "n_fired": rng.integers(40, 900, F)})
        both = pd.concat(
            [
                pd.DataFrame({"latent": np.arange(F), "model": m["model"], "shared": np.arange(F) < shared})
                for m in models
            ]
        )
        made[seed] = SimpleNamespace(
            metadata={"architectures": models},
            table=table,
            architectures=both,
            own=lambda kind, c=curves: np.concatenate(c, axis=1),
        )
    return SimpleNamespace(architectures=lambda seed=0: made[seed], each_seed=lambda: range(seeds), seeds=seeds)


def test_an_order_that_both_share_is_found_and_one_that_they_do_not_is_not() -> None:
    found = BY_ID[ORDER].measure(lab_of())
    assert verdict(BY_ID[ORDER], found) == SUPPORTED and found.effect.n == 3, found
    assert abs(found.more["median lag"].value - 1) < 0.3
    assert said(ORDER, lab_of(order=0.0)) != SUPPORTED


def test_context_that_is_late_is_told_from_a_model_that_is_late_with_everything() -> None:
    found = BY_ID[CONTEXT].measure(lab_of(context=3.0))
    assert verdict(BY_ID[CONTEXT], found) == SUPPORTED, found
    lags = [found.more[f"lag of the third the token leaves {p} open"].value for p in ("least", "middle", "most")]
    assert lags == sorted(lags) and abs(found.effect.value - (lags[2] - lags[0])) < 1e-9
    assert abs(found.effect.value - 2.0) < 0.5, "thirds lie two thirds apart"
    assert said(CONTEXT, lab_of(lag=3.0)) != SUPPORTED
    assert said(CONTEXT, lab_of(context=-3.0)) != SUPPORTED


def test_snapshots_without_order_support_nothing() -> None:
    """All curves shuffled in time, one permutation per model and seed: the null run of the whole measure."""
    lab = lab_of(context=3.0)
    for seed in lab.each_seed():
        one, rng = lab.architectures(seed), np.random.default_rng(100 + seed)
        curves = one.own("agreement")
        order = np.concatenate([rng.permutation(K), K + rng.permutation(K)])
        one.own = lambda kind, c=curves[:, order]: c
    assert said(ORDER, lab) != SUPPORTED


def test_too_few_shared_latents_decide_nothing() -> None:
    for claim in (ORDER, CONTEXT):
        assert said(claim, lab_of(shared=12)) == NOT_TESTABLE
