"""Questions nobody had asked: each experiment on made-up inputs whose answer is known, with the effect and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sae.errors import MissingError
from workbench.claims import all_claims, curves
from workbench.claims.base import verdict
from workbench.claims.rules import CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE, SUPPORTED
from workbench.workspace import Workspace

BY_ID = {c.id: c for c in all_claims()}


def said(claim_id: str, lab: Any) -> str:
    return verdict(BY_ID[claim_id], BY_ID[claim_id].measure(lab))


class Once:
    """What a lab's ``once`` does."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}

    def __call__(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


# --- trajectories ----------------------------------------------------------------------------------------------------

S, F, N = 10, 160, 4000
KINDS = np.array(["token", "previous-token", "context", "induction"])


def crosscoders(monkeypatch: pytest.MonkeyPatch, model: float, own: float, kind: float, seeds: int = 3) -> Any:
    """Crosscoders whose latents do the same in another order, with trajectories of three parts of these sizes: one that
    belongs to the latent, one that each crosscoder adds, one that all latents of a kind share.
    """
    from workbench.claims.evolution import trajectories

    rng = np.random.default_rng(0)
    of_latent, of_kind = rng.standard_normal((F, S)), rng.standard_normal((4, S))[np.arange(F) % 4]
    activity = np.where(rng.random((N, F)) < 0.05, rng.random((N, F)) + 0.5, 0)
    made: dict[int, Any] = {}
    for seed in range(seeds):
        order = rng.permutation(F)
        curve = 5 + np.linspace(0, 3, S) + model * of_latent + kind * of_kind + own * rng.standard_normal((F, S))
        curve[:, -1] = 40.0  # the largest, so that relative norms keep the parts
        noisy = np.where(rng.random((N, F)) < 0.9, activity, 0)
        table = pd.DataFrame({"latent": np.arange(F), "alive": True, "kind": KINDS[order % 4]})
        made[seed] = SimpleNamespace(
            table=table, norms=lambda i, c=curve[order]: c[i], codes=sp.csr_array(noisy[:, order]), id=f"s{seed}"
        )
    monkeypatch.setattr(trajectories, "codes", lambda lab, seed: made[seed].codes)
    monkeypatch.setattr(trajectories, "DRAWS", 60)
    return SimpleNamespace(
        evolution=lambda seed=0: made[seed], seeds=seeds, each_seed=lambda: range(seeds), once=Once(), quick=True
    )


TRAJECTORIES = "evolution.trajectories-of-the-model"


def test_trajectories_of_the_model_are_told_from_those_of_the_crosscoder(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = crosscoders(monkeypatch, model=1.0, own=0.3, kind=0.0)
    found = BY_ID[TRAJECTORIES].measure(lab)
    assert verdict(BY_ID[TRAJECTORIES], found) == SUPPORTED, found
    assert found.effect.value == pytest.approx(1 / 1.09, abs=0.03), "the latent's own share of the variance"
    assert found.effect.n == 3 and found.more["matched"].value > 0.9
    assert found.more["same frequency and kind"].value < 0.2
    assert said(TRAJECTORIES, crosscoders(monkeypatch, model=0.3, own=1.0, kind=0.0)) == CONTRADICTED
    assert said(TRAJECTORIES, crosscoders(monkeypatch, model=0.0, own=1.0, kind=0.0)) == CONTRADICTED


def test_trajectories_that_all_latents_of_a_kind_share_are_not_the_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    found = BY_ID[TRAJECTORIES].measure(crosscoders(monkeypatch, model=0.0, own=0.3, kind=1.0))
    assert found.effect.value > 0.8, "matched latents do share them"
    assert verdict(BY_ID[TRAJECTORIES], found) != SUPPORTED, "and so do others of the kind"


def test_one_crosscoder_or_latents_that_match_nothing_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.claims.evolution import trajectories

    assert said(TRAJECTORIES, crosscoders(monkeypatch, 1.0, 0.3, 0.0, seeds=1)) == NOT_TESTABLE
    assert said(TRAJECTORIES, crosscoders(monkeypatch, 1.0, 0.3, 0.0, seeds=2)) == INCONCLUSIVE, "one pair"
    lab = crosscoders(monkeypatch, model=1.0, own=0.3, kind=0.0)
    rng = np.random.default_rng(9)
    monkeypatch.setattr(
        trajectories, "codes", lambda lab, seed: sp.csr_array((rng.random((N, F)) < 0.05).astype(float))
    )
    assert said(TRAJECTORIES, lab) == NOT_TESTABLE


def test_exchanged_partners_stay_in_their_group() -> None:
    from workbench.claims.evolution.trajectories import exchanged, strata

    groups = strata(KINDS[np.arange(400) % 4], np.geomspace(30, 3000, 400))
    assert len(set(groups)) == 16
    order = exchanged(groups, np.random.default_rng(0))
    assert sorted(order) == list(range(400)) and (groups[order] == groups).all()
    assert (order == np.arange(400)).mean() < 0.15


def test_the_curve_behind_a_claim_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from workbench.claims.run import run_claim
    from workbench.exporting.figures import build
    from workbench.exporting.render import render
    from workbench.exporting.spec import FigureSpec

    lab = crosscoders(monkeypatch, model=1.0, own=0.3, kind=0.0)
    lab.workspace, lab.say, lab.replace = Workspace(tmp_path / "ws"), lambda line: None, False
    run_claim(BY_ID[TRAJECTORIES], lab)
    spec = FigureSpec(figure="claim_curve", source=f"claims/{TRAJECTORIES}")
    made = build(spec, lab.workspace)
    assert set(made.data["series"]) >= {"matched"} and "half of the variance" in made.caption
    assert b"<svg" in render(made, spec.style, formats=("svg",))["svg"]
    monkeypatch.setattr(curves, "CURVES", {})
    with pytest.raises(MissingError, match="has no curve"):
        build(spec, lab.workspace)


def test_curves_are_of_claims_that_exist() -> None:
    assert set(curves.CURVES) <= set(BY_ID) and all(c.says and c.x_label and c.y_label for c in curves.CURVES.values())
