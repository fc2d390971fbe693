"""The n-gram phase: what the snapshots' own losses and divergences say, without any crosscoder.

There is one training run. What stands in for an interval is the scatter of single snapshots about their neighbours, or
the resolution of one snapshot on either side; controls are the same quantities for snapshots in random order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab
from workbench.claims.measured import NORMAL95
from workbench.stats import interval95

DRAWS = 500
FALL = 0.9  # share of its whole fall after which a divergence counts as learnt


def learnt(curve: Sequence[float]) -> int:
    """First snapshot at which a divergence has done 90 % of its fall from the start to its least value."""
    x = np.asarray(curve, float)
    return int(np.argmax(x <= x[0] - FALL * (x[0] - x.min())))


def interior(curve: np.ndarray) -> float:
    """How far the least inner value lies below the lower of both ends."""
    return float(min(curve[0], curve[-1]) - curve[1:-1].min())


def scatter(curve: np.ndarray) -> float:
    """Standard deviation of single snapshots about their neighbours, from second differences (curvature adds to it)."""
    return float(np.sqrt(np.mean(np.diff(curve, 2) ** 2) / 6))


def against_shuffled(
    columns: np.ndarray, statistic: Callable[[np.ndarray], float], unit: str, seed: int = 0
) -> tuple[Measured, Measured]:
    """A statistic of curves [C, S] with the scatter of the same over shuffled snapshots, and that null's mean."""
    rng, S = np.random.default_rng(seed), columns.shape[1]
    null = np.array([statistic(columns[:, rng.permutation(S)]) for _ in range(DRAWS)])
    null = null[np.isfinite(null)]
    value, half = statistic(columns), NORMAL95 * float(null.std())
    mean, error = float(null.mean()), NORMAL95 * float(null.std() / len(null) ** 0.5)
    return Measured(value, value - half, value + half, S, unit), Measured(
        mean, mean - error, mean + error, len(null), unit
    )


def with_scatter(
    columns: np.ndarray, statistic: Callable[[np.ndarray], float], unit: str = "snapshots", seed: int = 0
) -> Measured:
    """A statistic of curves [C, S], over draws in which every snapshot scatters about its curve as single snapshots do
    about their neighbours in the later half; never surer than one snapshot on either side.

    Where snapshots have no order their scatter is as large as the curve, and so is the interval.
    """
    rng, S = np.random.default_rng(seed), columns.shape[1]
    spread = np.array([scatter(c[S // 2 :]) for c in columns])[:, None]
    draws = [statistic(columns + spread * rng.standard_normal(columns.shape)) for _ in range(DRAWS)]
    value = statistic(columns)
    low, high = interval95(draws)
    return Measured(float(value), float(min(low, value - 1)), float(max(high, value + 1)), S, unit)


def _phases(lab: Lab, *columns: str) -> pd.DataFrame | None:
    phases = lab.evolution(0).phases
    return phases if phases is not None and set(columns) <= set(phases.dropna(axis=1, how="all").columns) else None


def phase_ends(lab: Lab) -> Finding:
    """Nats by which the distance to the bigram table grows again on both sides of its least."""
    if (phases := _phases(lab, "kl_to_bigram")) is None:
        return untestable("the distance to the bigram table was not computed")
    curve = phases["kl_to_bigram"].to_numpy(float)
    _, control = against_shuffled(curve[None], lambda c: interior(c[0]), "nats")
    half = NORMAL95 * 2**0.5 * scatter(curve[len(curve) // 2 :])  # of a difference of two snapshots
    value = interior(curve)
    effect = Measured(value, value - half, value + half, len(curve), "nats")
    at = 1 + int(curve[1:-1].argmin())
    return Finding(effect, control, phases[["step", "kl_to_bigram"]], f"least at step {phases['step'].iloc[at]:,}")


def unigram_first(lab: Lab) -> Finding:
    """Snapshots between 90 % of the fall of the unigram divergence and of the bigram divergence."""
    if (phases := _phases(lab, "kl_unigram", "kl_bigram")) is None:
        return untestable("the divergences were not computed")
    uni, bi = (learnt(phases[c]) for c in ("kl_unigram", "kl_bigram"))
    curves = phases[["kl_unigram", "kl_bigram"]].to_numpy(float).T

    def gap(c: np.ndarray) -> float:
        return float(learnt(c[1]) - learnt(c[0]))

    _, control = against_shuffled(curves, gap, "snapshots")
    steps = phases["step"].tolist()
    note = f"90 % of the fall: unigram at step {steps[uni]:,}, bigram at step {steps[bi]:,}"
    return Finding(with_scatter(curves, gap), control, phases[["step", "kl_unigram", "kl_bigram"]], note)


def before_induction(lab: Lab) -> Finding:
    """Snapshots between the end of the n-gram phase and the first that solves induction."""
    from workbench.analysis.evolution.phases import first_solved

    if (phases := _phases(lab, "kl_to_bigram", "accuracy_induction")) is None:
        return untestable("induction was not measured at the snapshots")
    solved, end = first_solved(phases["accuracy_induction"]), 1 + int(phases["kl_to_bigram"].to_numpy()[1:-1].argmin())
    if solved < 0:
        return untestable("no snapshot solves induction")
    curves = phases[["kl_to_bigram", "accuracy_induction"]].to_numpy(float).T

    def gap(c: np.ndarray) -> float:  # in random order few end solved, so the first to reach the level counts
        return float(int((c[1] >= 0.8).argmax()) - (1 + int(c[0, 1:-1].argmin())))

    _, control = against_shuffled(curves, gap, "snapshots")
    steps = phases["step"].tolist()
    note = (
        f"phase ends at step {steps[end]:,}, induction solved from step {steps[solved]:,} (0.8 of two"
        f" alternatives, a low"
        " bar)"
    )
    return Finding(
        with_scatter(curves, gap),
        control,
        phases[["step", "kl_to_bigram", "accuracy_induction"]],
        note,
    )


_COMMON: dict[str, Any] = {
    "paper": "evolution",
    "unit": "snapshot; one training run of the model",
    "needs": ("evolution",),
}
CLAIMS = [
    Claim(
        id="evolution.n-gram-phase-ends",
        section="5.1",
        statement="Training first approaches the bigram table and then moves away from it.",
        paper_number="loss near the entropies, divergences fall quickly",
        experiment="How far the distance to the bigram table lies, at its least inner snapshot, below both ends.",
        control="The same for the snapshots in random order.",
        rule=Rule("above", 0.0, "beaten"),
        would_change="A least distance at the last snapshot.",
        measure=phase_ends,
        **_COMMON,
    ),
    Claim(
        id="evolution.unigram-before-bigram",
        section="5.1",
        statement="Unigram statistics are learnt before bigram statistics.",
        paper_number="figure only",
        experiment=(
            "Snapshots between 90 % of the fall of the divergence from the unigram table and of that"
            " from the bigram table."
        ),
        control="The same for the snapshots in random order.",
        rule=Rule("above", 0.0, "beaten"),
        would_change="Both within one snapshot.",
        measure=unigram_first,
        **_COMMON,
    ),
    Claim(
        id="evolution.n-grams-before-induction",
        section="5.2",
        statement="The statistical phase ends before induction appears.",
        paper_number="induction latents 10k-100k, after the phase",
        experiment="Snapshots between the least distance to the bigram table and the first that solves induction.",
        control="The same for the snapshots in random order.",
        rule=Rule("above", 0.0, "beaten"),
        would_change="Induction solved within one snapshot of the phase's end.",
        measure=before_induction,
        **_COMMON,
    ),
]
