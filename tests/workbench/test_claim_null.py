"""A run in which training has no order: snapshots permuted, and every claim about order judged by its own measure."""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import binomtest

from tests.workbench.test_claim_measures import Evolution
from tests.workbench.test_claim_open import Once
from workbench.analysis.evolution.emergence import emergence_table
from workbench.analysis.evolution.orders import class_orders, latent_claims, phase_claims, statistics_table
from workbench.claims import all_claims
from workbench.claims.base import verdict
from workbench.claims.rules import NOT_TESTABLE, SUPPORTED

BY_ID = {c.id: c for c in all_claims("evolution")}
ORDERED = (  # what is said about the order of snapshots, and counted
    "axes",
    "complexity-and-emergence",
    "dimensionality",
    "induction-before-context",
    "initialisation-dip",
    "latents-precede-induction",
    "n-gram-phase-ends",
    "n-grams-before-induction",
    "n-grams-before-induction-over-runs",
    "previous-token-before-induction",
    "previous-token-heads-first-over-runs",
    "trajectories-of-the-model",
    "unigram-before-bigram",
    "unigram-before-bigram-over-runs",
)
UNORDERED = {  # counted, and true or false whatever the order
    "agreement-attribution-faithful",
    "attribution-beats-frequency",
    "attribution-beats-magnitude",
    "attribution-faithful",
    "latents-vanish-without-the-skill",
    "norm-tracks-probe",
    "same-snapshot-control",
    "single-sae-gap",
    "two-groups",
    "warm-up",
}
EACH_ITS_OWN = {"trajectories-of-the-model"} | {name for name in ORDERED if name.endswith("-over-runs")}
S, F, N, DRAWS = 10, 200, 1500, 100
PERMUTATIONS = 5
KINDS = ("token", "previous-token", "induction", "context")
EMERGE = (-3.0, 2.0, 5.0, 8.0)  # snapshot at which each kind is half there


class Run:
    """A crosscoder whose latents emerge kind after kind; its snapshots come in ``order``, and its tables are computed
    from them by the analysis itself.
    """

    def __init__(self, seed: int, order: np.ndarray):
        base, rng = Evolution(seed), np.random.default_rng(seed)
        which = np.arange(F) % 4
        at = np.array(EMERGE)[which] + 0.7 * np.random.default_rng(99).standard_normal(F)
        curves = 1 / (1 + np.exp(-2.0 * (np.arange(S) - at[:, None])))
        dip = np.where(which == 0, 1.0, 0.0)[:, None] * np.array([0, 0, 0.2, 0.4, 0.4, 0.3, 0.1, 0, 0, 0])
        norms = np.clip(curves - dip + 0.05 * rng.standard_normal((F, S)), 1e-3, None)[:, order]
        side = np.arange(S) >= 4
        cosines = np.where(side[:, None] == side, 0.9, 0.1) + 0.05 * rng.standard_normal((F, S, S))
        self._norms, self._cosines = norms, ((cosines + cosines.swapaxes(1, 2)) / 2)[:, order][:, :, order]
        self.steps, self.id = base.steps, f"null.s{seed}"
        moved = base.phases.iloc[order].reset_index(drop=True)
        self.phases = moved.assign(source=base.phases["source"], step=base.phases["step"])
        n_fired = rng.integers(40, 900, F)
        self.table = emergence_table(norms.T, self.steps.tolist(), n_fired=n_fired).assign(
            kind=np.array(KINDS)[which], complexity=at + rng.standard_normal(F)
        )
        last = self.phases["source"].iloc[-1]
        self.attribution_latents = pd.DataFrame(
            {"task": "induction", "source": last, "latent": np.flatnonzero(which == 2), "attribution": 1.0}
        )

    @cached_property
    def statistics(self) -> pd.DataFrame:
        """The analysis' own claims, from these snapshots in this order."""
        alive, norms = self.table["alive"].to_numpy(), self._norms.T
        rows = class_orders(norms, self.table, n=DRAWS) + latent_claims(norms, self.table, n=DRAWS)
        return statistics_table(rows + phase_claims(self.phases, self._cosines.astype(np.float32), alive))

    def norms(self, latents: Any, kind: str = "training") -> np.ndarray:
        return self._norms[np.asarray(latents)]

    def cosines(self, latent: int) -> np.ndarray:
        return self._cosines[latent]


def run_of(orders: list[np.ndarray]) -> Any:
    made = [Run(seed, order) for seed, order in enumerate(orders)]
    return SimpleNamespace(
        evolution=lambda seed=0: made[seed], each_seed=lambda: range(3), seeds=3, once=Once(), quick=True
    )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents of all seeds do the same on the held-out text; fewer draws of the nulls."""
    from workbench.claims.evolution import axes, over_runs, trajectories

    rng = np.random.default_rng(5)
    activity = sp.csr_array(np.where(rng.random((N, F)) < 0.06, rng.random((N, F)) + 0.5, 0))
    monkeypatch.setattr(trajectories, "codes", lambda lab, seed: activity)
    monkeypatch.setattr(trajectories, "DRAWS", DRAWS)
    monkeypatch.setattr(axes, "DRAWS", 60)
    monkeypatch.setattr(over_runs, "tables", tables)


def tables(lab: Any) -> dict[str, pd.DataFrame]:
    """What the snapshots of three training runs show; heads rise as latents of their kind do."""
    found = {}
    for seed in range(3):
        run = lab.evolution(seed)
        heads = {
            column: run._norms[run.table["kind"] == kind].mean(0)
            for column, kind in (("previous", "previous-token"), ("induction", "induction"))
        }
        renamed = run.phases.rename(columns={"accuracy_induction": "accuracy"})
        found[f"r{seed}"] = renamed.assign(**heads)
    return found


def judged(name: str, lab: Any, own: Any) -> str:
    claim = BY_ID[f"evolution.{name}"]
    return verdict(claim, claim.measure(own if name in EACH_ITS_OWN else lab))


def test_every_counted_claim_of_training_is_in_the_null_run_or_not_about_order() -> None:
    counted = {c.id.partition(".")[2] for c in BY_ID.values() if not c.construction and not c.unsettled}
    assert counted == set(ORDERED) | UNORDERED


@pytest.mark.usefixtures("bench")
def test_permuted_snapshots_support_no_more_than_they_may() -> None:
    """Seeds of a crosscoder share the model's one order, so all three are permuted alike; for trajectories, which are
    compared between crosscoders, and for training runs, each has an order of its own.
    """
    rng, found = np.random.default_rng(3), []
    for _ in range(PERMUTATIONS):
        shared = rng.permutation(S)
        lab, own = run_of([shared] * 3), run_of([rng.permutation(S) for _ in range(3)])
        found += [(name, judged(name, lab, own)) for name in ORDERED]
    tested = [(n, v) for n, v in found if v != NOT_TESTABLE]
    hits = [n for n, v in tested if v == SUPPORTED]
    assert len(tested) > 4 * PERMUTATIONS
    assert binomtest(len(hits), len(tested)).proportion_ci(0.95).low <= 0.05, f"{len(hits)} of {len(tested)}: {hits}"


@pytest.mark.usefixtures("bench")
def test_the_same_run_in_its_own_order_is_seen() -> None:
    """The null run could find something: in their own order the same curves support what was put into them."""
    lab = run_of([np.arange(S)] * 3)
    seen = {name for name in ORDERED if judged(name, lab, lab) == SUPPORTED}
    assert seen >= {
        "axes",
        "dimensionality",
        "initialisation-dip",
        "n-gram-phase-ends",
        "n-grams-before-induction",
        "trajectories-of-the-model",
        "unigram-before-bigram",
    }, seen
