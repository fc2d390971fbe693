"""Latents fall into two groups by how strong they are before training, and those of the start dip when the loss first
falls.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import gaussian_kde

from workbench.claims.base import Claim, Finding, Measured, above, untestable
from workbench.claims.lab import Lab

DRAWS = 200
GRID = 200


def modes(x: np.ndarray, bandwidth: float) -> int:
    """Peaks of the kernel density of ``x`` [n] with an absolute bandwidth."""
    grid = np.linspace(x.min() - 3 * bandwidth, x.max() + 3 * bandwidth, GRID)
    density = gaussian_kde(x, bandwidth / x.std(ddof=1))(grid)
    return int(((density[1:-1] > density[:-2]) & (density[1:-1] >= density[2:])).sum())


def critical_bandwidth(x: np.ndarray) -> float:
    """The least bandwidth at which the density of ``x`` has one peak."""
    low, high = 1e-3 * float(x.std()), 2 * float(x.std())
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if modes(x, middle) <= 1 else (middle, high)
    return high


def one_group_p(x: np.ndarray, *, seed: int = 0, draws: int = DRAWS) -> float:
    """Silverman's test (1981): p value of the hypothesis that the density of ``x`` has one peak."""
    h, rng = critical_bandwidth(x), np.random.default_rng(seed)
    shrink = (1 + h**2 / x.var()) ** -0.5  # the smoothed resample has the sample's own variance
    hits = 0
    for _ in range(draws):
        y = rng.choice(x, len(x))
        y = x.mean() + (y - x.mean() + h * rng.standard_normal(len(x))) * shrink
        hits += modes(y, h) > 1
    return (hits + 1) / (draws + 1)


def dip(curves: np.ndarray, *, seed: int = 0) -> tuple[Measured, Measured]:
    """The smaller of fall and rise around the lowest inner point of the mean curve of relative norms [n, S]; and the
    same for curves whose snapshots are shuffled, latent by latent."""

    def of(mean_S: np.ndarray) -> float:
        at = 1 + int(mean_S[1:-1].argmin())
        return float(min(mean_S[0], mean_S[at:].max()) - mean_S[at])

    rng = np.random.default_rng(seed)
    drawn = [of(curves[rng.integers(0, len(curves), len(curves))].mean(0)) for _ in range(500)]
    null = [of(rng.permuted(curves, axis=1).mean(0)) for _ in range(DRAWS)]
    low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    effect = Measured(of(curves.mean(0)), low, high, len(curves), "relative norm")
    low, high = (float(q) for q in np.quantile(null, [0.025, 0.975]))
    return effect, Measured(float(np.mean(null)), low, high, len(null), "relative norm")


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
    """1 - p of one group, in the worst seed; control: as many draws from one normal group with the same mean and
    deviation.
    """
    rows = []
    for seed in lab.each_seed():
        found = _relative(lab, seed)
        if found is None:
            return untestable("the crosscoder over snapshots has no decoder norms")
        x = found[0][:, 0].astype(np.float64)
        one = np.random.default_rng(seed).normal(x.mean(), x.std(), len(x))
        rows.append(
            {
                "seed": seed,
                "p": one_group_p(x, seed=seed),
                "p_one_group": one_group_p(one, seed=seed),
                "n": len(x),
                "median": np.median(x),
            }
        )
    table = pd.DataFrame(rows)
    n = int(table["n"].sum())
    note = (
        f"p of one group {table['p'].min():.3f}–{table['p'].max():.3f}; median relative norm at step 0:"
        f" {table['median'].mean():.2f}"
    )
    effect = Measured(float(1 - table["p"].max()), None, None, n, "1 - p of one group")
    return Finding(
        effect, Measured(float(1 - table["p_one_group"].max()), None, None, n, "1 - p of one group"), table, note
    )


def initialisation_dip(lab: Lab) -> Finding:
    """Fall and rise of the mean norm of the initialisation latents, in the seed where it is least."""
    rows = []
    for seed in lab.each_seed():
        found = _relative(lab, seed)
        if found is None or found[1].sum() < 5:
            return untestable("too few latents exist at initialisation")
        effect, null = dip(found[0][found[1]].astype(np.float64), seed=seed)
        mean = found[0][found[1]].mean(0)
        at = 1 + int(mean[1:-1].argmin())
        rows.append(
            (
                effect,
                null,
                {"seed": seed, "dip": effect.value, "null": null.value, "step": int(lab.evolution(seed).steps[at])},
            )
        )
    effect, null, _ = min(rows, key=lambda r: r[0].value)
    table = pd.DataFrame([r[2] for r in rows])
    return Finding(effect, null, table, f"lowest at step {', '.join(str(s) for s in table['step'])}")


def emergent_norm_free(lab: Lab) -> Finding:
    """Share of latents without a tenth of their norm-free strength at step 0, in the seed where it is least; control:
    at the last snapshot.
    """
    from workbench.stats import wilson

    rows = []
    for seed in lab.each_seed():
        evolution = lab.evolution(seed)
        free = evolution.norms(evolution.table.loc[evolution.table["alive"], "latent"].to_numpy(), "free")
        if free is None:
            return untestable("the analysis has no norm-free strengths")
        free = free[np.isfinite(free).all(1) & (free.max(1) > 0)]
        start, end = (int((free[:, i] < 0.1 * free.max(1)).sum()) for i in (0, -1))
        rows.append({"seed": seed, "emergent": start, "vanished": end, "n": len(free)})
    table = pd.DataFrame(rows)
    worst = table.loc[(table["emergent"] / table["n"]).idxmin()]
    effect, control = (
        Measured.from_dict(wilson(int(worst[c]), int(worst["n"]), "latents").as_dict(), "share")
        for c in ("emergent", "vanished")
    )
    return Finding(effect, control, table, f"{effect.n} latents of one seed")


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
        criterion="Interval above 0.05 and above the control's in the seed where it is least.",
        measure=emergent_norm_free,
        holds=lambda f: f.effect.floor > 0.05 and f.control is not None and f.effect.floor > f.control.ceiling,
        needs=("evolution",),
    ),
    Claim(
        id="evolution.two-groups",
        paper="evolution",
        section="4.2",
        statement="Latents fall into two groups: there at initialisation, or emerging.",
        paper_number="two groups, figure only",
        experiment=(
            "Decoder norm at step 0 over its maximum, one number per latent; Silverman's test of one peak against more."
        ),
        control="As many draws from a normal distribution with the same mean and deviation.",
        criterion="p of one group below 0.05 in every seed, the control's not.",
        measure=two_groups,
        holds=above(0.95),
        needs=("evolution",),
        cost=20,
    ),
    Claim(
        id="evolution.initialisation-dip",
        paper="evolution",
        section="4.2",
        statement="Latents of the initialisation weaken when training begins, and come back.",
        paper_number="sharp drop at step 128, rebound, slow decay",
        experiment=(
            "Mean relative decoder norm of the initialisation latents over the snapshots: the smaller of fall and rise"
            " around its lowest inner point."
        ),
        control="Snapshots shuffled latent by latent.",
        criterion="95 % interval above 0.05 and above the control's in the seed where it is least.",
        measure=initialisation_dip,
        holds=lambda f: f.effect.floor > 0.05 and f.control is not None and f.effect.floor > f.control.ceiling,
        needs=("evolution",),
        cost=4,
    ),
]
