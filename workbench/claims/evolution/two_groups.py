"""Latents fall into two groups by how strong they are before training, and those of the start dip during it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.evolution.ngrams import scatter
from workbench.claims.lab import Lab
from workbench.claims.measured import NORMAL95
from workbench.stats import interval95

DRAWS = 100
LEVEL = 0.05  # p of one group from which it is ruled out
PEAKS = 12  # places of the peak that are tried
AT_MAXIMUM = 1 - 1e-6  # relative norm from which a latent is strongest at step 0: an atom, which no density has


def _gap(x: np.ndarray, *, convex: bool) -> float:
    """Largest distance, in steps, of the empirical distribution of sorted ``x`` from its greatest convex minorant (or
    its least concave majorant).
    """
    if not convex:  # the mirror image
        x = -x[::-1]
    hull: list[int] = []
    for i, value in enumerate(x):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (b - a) * (value - x[a]) < (i - a) * (x[b] - x[a]):  # the slope rises: convex so far
                break
            hull.pop()
        hull.append(i)
    return float((np.arange(len(x)) + 1 - np.interp(x, x[hull], hull)).max())


def two_peaks(x: np.ndarray) -> float:
    """How far the distribution of ``x`` [n] is from one with a single peak, after Hartigan & Hartigan's dip (1985).

    Below its peak such a distribution is convex, above it concave. The statistic is half of the gap from the convex
    minorant below plus the gap from the concave majorant above, at the place of the peak where that is least. It is
    calibrated on uniform samples, whose hard edges and flat density are the hardest case of a single group.
    """
    x = np.sort(np.asarray(x, np.float64))
    places = np.unique(np.linspace(0, len(x), PEAKS + 1).round().astype(int))
    gaps = [
        (_gap(x[:m], convex=True) if m > 1 else 1.0) + (_gap(x[m:], convex=False) if len(x) - m > 1 else 1.0)
        for m in places
    ]
    return min(gaps) / 2 / len(x)


def of_one_group(n: int, *, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """[draws] values of :func:`two_peaks` for uniform samples of n."""
    rng = np.random.default_rng(seed)
    return np.array([two_peaks(rng.random(n)) for _ in range(draws)])


def fall_and_rise(mean_S: np.ndarray) -> float:
    """The smaller of fall and rise around the lowest inner point of a curve [S]."""
    at = 1 + int(mean_S[1:-1].argmin())
    return float(min(mean_S[0], mean_S[at:].max()) - mean_S[at])


def dip(curves: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """:func:`fall_and_rise` of the mean curve of relative norms [n, S]; and what it must exceed.

    That is the larger of two: what 97.5 % of curves whose snapshots are shuffled, latent by latent, stay below; and how
    far two snapshots come apart by their scatter about their neighbours. Latents are chosen for being strong at the
    first snapshot, so in any order of snapshots their mean falls, and rises where it may: only a curve that is smooth
    in the order it came in has a dip.
    """
    rng = np.random.default_rng(seed)
    null = [fall_and_rise(rng.permuted(curves, axis=1).mean(0)) for _ in range(DRAWS)]
    mean = curves.mean(0)
    return fall_and_rise(mean), max(interval95(null)[1], NORMAL95 * 2**0.5 * scatter(mean))


def _relative(lab: Lab, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(relative decoder norms of the alive latents [n, S], whether each is an initialisation latent)."""
    evolution = lab.evolution(seed)
    alive = evolution.table[evolution.table["alive"]]
    norms = evolution.norms(alive["latent"].to_numpy())
    return (
        None
        if norms is None
        else (norms / norms.max(1, keepdims=True), (alive["class"] == "initialisation").to_numpy())
    )


def two_groups(lab: Lab) -> Finding:
    """Distance from a single group per seed, without the atom at the maximum; control: what 95 % of uniform samples of
    the same size stay below.
    """
    rows = []
    for seed in lab.each_seed():
        found = _relative(lab, seed)
        if found is None:
            return untestable("the crosscoder over snapshots has no decoder norms")
        x = found[0][:, 0].astype(np.float64)
        inner = x[x < AT_MAXIMUM]
        if len(inner) < 30:
            return untestable(f"{len(inner)} alive latents are not strongest at step 0; 30 are needed")
        null = of_one_group(len(inner), seed=seed)
        value = two_peaks(inner)
        rows.append(
            {
                "seed": seed,
                "distance": value,
                "one_group_95": float(np.quantile(null, 0.95)),
                "p": float((1 + (null >= value).sum()) / (1 + len(null))),
                "n": len(inner),
                "at_maximum": int(len(x) - len(inner)),
            }
        )
    table = pd.DataFrame(rows)
    note = (
        f"p of one group {table['p'].min():.3f}–{table['p'].max():.3f}; {table['at_maximum'].sum()}"
        f" latents strongest at"
        " step 0 are left out"
    )
    # nowhere ruled out is not shown: latents that have hardly left their start look like one group too
    left_open = "one group is not ruled out, which is no evidence for it" if table["p"].min() > LEVEL else ""
    effect, control = (Measured.of(table[c], unit="distance from one group") for c in ("distance", "one_group_95"))
    return Finding(effect, control, table, note, open=left_open)


def initialisation_dip(lab: Lab) -> Finding:
    """Fall and rise of the mean norm of the initialisation latents, per seed."""
    rows = []
    for seed in lab.each_seed():
        found = _relative(lab, seed)
        if found is None or found[1].sum() < 5:
            return untestable("too few latents exist at initialisation")
        curves = found[0][found[1]].astype(np.float64)
        value, null = dip(curves, seed=seed)
        at = 1 + int(curves.mean(0)[1:-1].argmin())
        rows.append({"seed": seed, "dip": value, "null": null, "step": int(lab.evolution(seed).steps[at])})
    table = pd.DataFrame(rows)
    note = f"lowest at step {', '.join(str(s) for s in table['step'])}: during training, not as it begins"
    unit = "relative norm"
    return Finding(Measured.of(table["dip"], unit=unit), Measured.of(table["null"], unit=unit), table, note)


def emergent_norm_free(lab: Lab) -> Finding:
    """Share of latents without a tenth of their norm-free strength at step 0, per seed; control: at the end."""
    rows = []
    for seed in lab.each_seed():
        evolution = lab.evolution(seed)
        free = evolution.norms(evolution.table.loc[evolution.table["alive"], "latent"].to_numpy(), "free")
        if free is None:
            return untestable("the analysis has no norm-free strengths")
        free = free[np.isfinite(free).all(1) & (free.max(1) > 0)]
        start, end = (float((free[:, i] < 0.1 * free.max(1)).mean()) for i in (0, -1))
        rows.append({"seed": seed, "emergent": start, "vanished": end, "n": len(free)})
    table = pd.DataFrame(rows)
    return Finding(Measured.of(table["emergent"], unit="share"), Measured.of(table["vanished"], unit="share"), table)


CLAIMS = [
    Claim(
        id="evolution.emergent-norm-free",
        paper="evolution",
        section="4.2; open: reviewers' circularity",
        statement="Latents that are absent at the start emerge during training, measured without decoder norms.",
        paper_number="not reported",
        experiment=(
            "Norm-free strength (latent scaling on held-out rows) at step 0 below a tenth of the latent's largest;"
            " share of the alive."
        ),
        control="The same at the last snapshot: latents that vanish.",
        rule=Rule("above", 0.05, "beaten"),
        unit="seed of the crosscoder; one training run of the model",
        construction="The decoders are refitted by least squares, so the norm-free strength is the norm.",
        measure=emergent_norm_free,
        needs=("evolution",),
    ),
    Claim(
        id="evolution.two-groups",
        paper="evolution",
        section="4.2",
        statement="Latents fall into two groups: there at initialisation, or emerging.",
        paper_number="two groups, figure only",
        experiment=(
            "Decoder norm at step 0 over its maximum, one number per latent, without those strongest"
            " at step 0; distance"
            " from a distribution with one peak (a dip statistic)."
        ),
        control="What 95 % of uniform samples of the same size stay below.",
        rule=Rule("above", 0.0, "beaten"),
        unit="seed of the crosscoder; one training run of the model",
        would_change="A distribution that a single group with hard edges explains.",
        measure=two_groups,
        needs=("evolution",),
        cost=20,
    ),
    Claim(
        id="evolution.initialisation-dip",
        paper="evolution",
        section="4.2",
        statement="Latents of the initialisation weaken during training, and come back.",
        paper_number="sharp drop at step 128, rebound, slow decay",
        experiment=(
            "Mean relative decoder norm of the initialisation latents over the snapshots: the smaller of fall and rise"
            " around its lowest inner point."
        ),
        control=(
            "The larger of two: what 97.5 % of curves with snapshots shuffled latent by latent stay below; how far two"
            " snapshots of the mean curve come apart by their scatter about their neighbours (95 %)."
        ),
        rule=Rule("above", 0.05, "beaten"),
        unit="seed of the crosscoder; one training run of the model",
        would_change="A mean curve without a rise after its fall.",
        measure=initialisation_dip,
        needs=("evolution",),
        cost=4,
    ),
]
