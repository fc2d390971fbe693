"""Claims about the order of events in training, each with its interval, its null and a plain verdict.

A claim is *found* when its interval lies on the claimed side and the value lies outside the central 95 % of the null
over shuffled snapshot labels where it has one; *not found* when it fails either; *too few* below ``MIN_GROUP`` latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from crosscoders import evolution as ev
from workbench.analysis.evolution.attribution import CONTROLS, area_over
from workbench.analysis.evolution.emergence import (
    Null,
    class_null,
    emergence_gap,
    median_gap,
    partial_spearman,
    snapshot_null,
)
from workbench.analysis.evolution.phases import end_of_ngram_phase, first_solved
from workbench.stats import Estimate, interval95, wilson

if TYPE_CHECKING:
    from workbench.analysis.evolution.baselines import Gaps

MIN_GROUP = 5
ORDER = (
    ("token", "previous-token"),
    ("previous-token", "induction"),
    ("token", "induction"),
    ("token", "context"),
    ("induction", "context"),
)


def claim_row(
    claim: str, estimate: Estimate, verdict: str, null: Null | None = None, kind: str = "", note: str = ""
) -> dict[str, Any]:
    """One claim: its estimate, its null (of ``kind``) where it has one, its verdict."""
    base = {
        "claim": claim,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "unit": estimate.unit,
    }
    shown = {"null": kind, "null_mean": np.nan, "null_low": np.nan, "null_high": np.nan, "p": np.nan, "null_n": 0}
    if null is not None:
        shown |= {"null_mean": null.mean, "null_low": null.low, "null_high": null.high, "p": null.p, "null_n": null.n}
    return base | shown | {"verdict": verdict, "note": note}


def class_orders(norms_SF: np.ndarray, table: pd.DataFrame, *, n: int = 500, seed: int = 0) -> list[dict[str, Any]]:
    """Median emergence (threshold 0.5, in snapshots) of one kind of latent after another's; needs the columns kind and
    alive.

    With a column ``site`` the latents come from several sites, and the notes say how many from which.
    """
    e = table["emergence_0.5_index"].to_numpy()
    usable = table["alive"].to_numpy() & (e >= 0)
    rows = []
    for first, second in ORDER:
        a, b = (usable & (table["kind"] == k).to_numpy() for k in (first, second))
        claim = f"{first} latents emerge before {second} latents"
        gap = median_gap(e[a], e[b])
        note = f"{_counted(table, a)} and {_counted(table, b)} latents"
        if min(a.sum(), b.sum()) < MIN_GROUP:
            rows.append(claim_row(claim, gap, "too few", note=note))
            continue
        labels = snapshot_null(emergence_gap(a, b), norms_SF, n=n, seed=seed)
        found = (gap.low or 0) > 0 and labels.observed > labels.high
        p = class_null(e, a, b, n=n, seed=seed).p
        rows.append(
            claim_row(
                claim,
                gap,
                "found" if found else "not found",
                labels,
                "snapshot labels",
                f"{note}; shuffled kinds p = {p:.3f}",
            )
        )
    return rows


def _counted(table: pd.DataFrame, chosen: np.ndarray) -> str:
    """How many latents, and where they come from if there are several sites: ``46 (L1R 45, L2R 1)``."""
    if "site" not in table or table["site"].nunique() < 2 or not chosen.any():
        return str(chosen.sum())
    return (
        f"{chosen.sum()}"
        f" ({', '.join(f'{site} {n}' for site, n in table['site'][chosen].value_counts().sort_index().items())})"
    )


def latent_claims(norms_SF: np.ndarray, table: pd.DataFrame, *, n: int = 500, seed: int = 0) -> list[dict[str, Any]]:
    """Initialisation and emergent groups, complexity against emergence, and the norm-free check."""
    alive = table["alive"].to_numpy()
    total = int(alive.sum())
    rows = []
    for name in ("initialisation", "emergent"):
        share = wilson(int((alive & (table["class"] == name)).sum()), total, "latents")
        rows.append(
            claim_row(
                f"{name} latents exist (at least 5 % of the alive)",
                share,
                "found" if (share.low or 0) > 0.05 else "not found",
            )
        )
    if "complexity" in table:
        density = np.log(np.maximum(table["n_fired"].to_numpy(), 1))
        e = np.where(table["emergence_0.5_index"] >= 0, table["emergence_0.5_index"], np.nan).astype(float)
        keep = alive & (table["n_fired"].to_numpy() >= 30)
        x = table["complexity"].to_numpy()[keep]
        r = partial_spearman(x, e[keep], density[keep])

        def statistic(relative_SF: np.ndarray) -> float:
            shuffled = ev.first_above(relative_SF, 0.5).astype(float)[keep]
            return partial_spearman(x, np.where(shuffled >= 0, shuffled, np.nan), density[keep], n=1).value

        null = snapshot_null(statistic, norms_SF, n=n, seed=seed)
        found = (r.low or 0) > 0 and null.observed > null.high
        claim = "complex latents emerge later (Spearman, firing frequency partialled out)"
        rows.append(claim_row(claim, r, "found" if found else "not found", null, "snapshot labels"))
    if "emergence_free_index" in table:
        a, b = table["emergence_0.5_index"].to_numpy(float), table["emergence_free_index"].to_numpy(float)
        keep = alive & (a >= 0) & (b >= 0)
        r = partial_spearman(a[keep], b[keep])
        rows.append(
            claim_row(
                "emergence by decoder norm agrees with the norm-free emergence (Spearman)",
                r,
                "found" if (r.low or 0) > 0.5 else "not found",
            )
        )
    return rows


def phase_claims(
    phases: pd.DataFrame, cosines_FSS: np.ndarray | None, alive: np.ndarray, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Two phases: n-gram statistics first, then skills; the turning point of decoder directions; compression and
    expansion.

    A column without a single number (too few tokens for its statistic) counts as not measured: its claims are left out.
    """
    S = len(phases)
    phases = phases.dropna(axis=1, how="all")
    rows: list[dict[str, Any]] = []

    def fact(claim: str, value: float, ok: bool, note: str) -> None:
        rows.append(
            claim_row(
                claim, Estimate(value, None, None, S, "snapshots", "none"), "found" if ok else "not found", note=note
            )
        )

    steps = phases["step"].tolist()
    if "kl_to_bigram" in phases:
        end = end_of_ngram_phase(phases["kl_to_bigram"])
        fact(
            "the n-gram phase ends inside the run (distance to the bigram table has an interior minimum)",
            end,
            0 < end < S - 1,
            f"step {steps[end]}",
        )
        if {"kl_unigram", "kl_bigram"} <= set(phases.columns):
            uni, bi = int(phases["kl_unigram"].argmin()), int(phases["kl_bigram"].argmin())
            fact(
                "unigram statistics are learnt before bigram statistics (minima of the divergences)",
                bi - uni,
                uni < bi,
                f"steps {steps[uni]}, {steps[bi]}",
            )
        for task in (c.removeprefix("accuracy_") for c in phases.columns if c.startswith("accuracy_")):
            solved = first_solved(phases[f"accuracy_{task}"])
            note = f"phase ends at step {steps[end]}, task solved " + (
                f"from step {steps[solved]}" if solved >= 0 else "nowhere"
            )
            fact(
                f"the n-gram phase ends before {task} is solved (accuracy >= 0.8)",
                solved - end if solved >= 0 else float("nan"),
                solved > end,
                note,
            )
    if cosines_FSS is not None and S >= 4:
        rows.append(_turning(phases, cosines_FSS[alive], seed))
    low = int(phases["dimensionality"].argmin())
    fact(
        "total dimensionality first falls, then grows (minimum inside the run)",
        low,
        0 < low < S - 1,
        f"minimum at step {steps[low]}",
    )
    return rows


def _turning(phases: pd.DataFrame, cosines_FSS: np.ndarray, seed: int) -> dict[str, Any]:
    """The split of the mean cosine matrix, with a bootstrap over latents; held against the end of the n-gram phase."""
    cos = np.nan_to_num(cosines_FSS.astype(np.float64))
    point = ev.turning_point(cos.mean(0))
    rng = np.random.default_rng(seed)
    draws = [ev.turning_point(cos[rng.integers(0, len(cos), len(cos))].mean(0)).index for _ in range(200)]
    low, high = interval95(draws)
    steps = phases["step"].tolist()
    estimate = Estimate(
        float(point.index), float(low), float(high), len(cos), "latents", "bootstrap over latents, 95 %"
    )
    note = f"step {steps[point.index]}, contrast {point.contrast:.2f}"
    if "kl_to_bigram" not in phases:
        return claim_row(
            "decoder directions have a turning point",
            estimate,
            "found" if point.contrast > 0.1 else "not found",
            note=note,
        )
    end = end_of_ngram_phase(phases["kl_to_bigram"])
    ok = abs(point.index - end) <= 1
    claim = "decoder directions turn where the n-gram phase ends (within one snapshot)"
    return claim_row(
        claim, estimate, "found" if ok else "not found", note=f"{note}; n-gram phase ends at step {steps[end]}"
    )


def skill_claims(
    phases: pd.DataFrame, table: pd.DataFrame, attribution: pd.DataFrame, *, top: int = 16
) -> list[dict[str, Any]]:
    """Do the latents that carry a task emerge before it is solved? Median emergence of the final snapshot's top
    latents.
    """
    rows = []
    for task, part in attribution.groupby("task"):
        solved = first_solved(phases[f"accuracy_{task}"])
        last = part[part["source"] == phases["source"].iloc[-1]]
        best = last.reindex(last["attribution"].abs().sort_values(ascending=False).index)["latent"].head(top)
        e = table.set_index("latent").loc[best, "emergence_0.5_index"].to_numpy()
        e = e[e >= 0]
        claim = f"the {top} latents that carry {task} emerge before it is solved (median)"
        if solved < 0 or len(e) < MIN_GROUP:
            rows.append(
                claim_row(
                    claim,
                    Estimate(float("nan"), None, None, len(e), "latents", "none"),
                    "too few" if solved >= 0 else "not solved",
                )
            )
            continue
        lead = replace(median_gap(e, [solved]), n=len(e))
        rows.append(
            claim_row(
                claim,
                lead,
                "found" if (lead.low or 0) > 0 else "not found",
                note=f"solved from step {phases['step'].iloc[solved]}",
            )
        )
    return rows


def curve_claims(curves: pd.DataFrame) -> list[dict[str, Any]]:
    """Does the attribution's top k beat each control at every snapshot whose curves were drawn? value = least area over
    a control.
    """
    rows = []
    for task, part in curves.groupby("task"):
        for control in CONTROLS:
            areas = [area_over(one, control) for _, one in part.groupby("source", sort=False)]
            known = [a for a in areas if np.isfinite(a)]
            n = len(areas)
            estimate = Estimate(min(known, default=float("nan")), None, None, n, "snapshots", "none")
            ok = n > 0 and len(known) == n and min(known) > 0
            note = f"mean area {np.mean(known):.2f}" if known else "control has too few latents"
            rows.append(
                claim_row(
                    f"{task}: top latents by attribution beat the {control} control at every solved snapshot",
                    estimate,
                    "found" if ok else "not found",
                    note=note,
                )
            )
    return rows


def gap_claims(gaps: Gaps, cosines_FSS: np.ndarray | None, alive: np.ndarray) -> list[dict[str, Any]]:
    """Explained variance lost by sharing one code, against each snapshot's own SAE: over all snapshots, and from the
    turning point on.
    """
    groups = {"all snapshots": slice(None)}
    if cosines_FSS is not None and len(gaps.table) >= 4:
        turn = ev.turning_point(np.nan_to_num(cosines_FSS[alive].astype(np.float64)).mean(0)).index
        groups["snapshots from the turning point on"] = slice(turn, None)
    rows = []
    for name, part in groups.items():
        e, shown = gaps.mean(part), gaps.table[part]
        claim = f"the crosscoder explains within 3 points of one SAE per snapshot ({name})"
        note = f"{len(shown)} snapshots; L0 {shown['l0_crosscoder'].mean():.1f} and {shown['l0_sae'].mean():.1f}"
        rows.append(claim_row(claim, e, "found" if e.high is not None and e.high <= 0.03 else "not found", note=note))
    return rows


def statistics_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The claims as one table; missing bounds are NaN."""
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(("value", "low", "high"), "float64"))
