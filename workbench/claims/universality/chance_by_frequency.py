"""Similarity beyond the token is above chance at every firing frequency."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab
from workbench.claims.universality.similarity import missing

MIN_LATENTS = 50  # frequency bins with fewer are not judged
TC, NULL = "token-conditional", "token-conditional null"


def _by_bin(table: pd.DataFrame, edges: np.ndarray, series: str, null: str) -> np.ndarray:
    """[bins] mean of a series minus mean of its null; NaN where a bin has too few latents."""
    out = np.full(len(edges) - 1, np.nan)
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        part = table[(table["n_fired"] >= low) & (table["n_fired"] < high)]
        means = [part[part["series"] == s]["r"].dropna() for s in (series, null)]
        if len(means[0]) >= MIN_LATENTS:
            out[i] = means[0].mean() - means[1].mean()
    return out


def measure(lab: Lab) -> Finding:
    """Token-conditional correlation above its null, by bin of firing counts; control: the same for untrained models."""
    if (why := missing(lab, (TC, NULL, f"untrained {TC}", f"untrained {NULL}"))) is not None:
        return why
    records = lab.comparison()
    table, nulls = records.table("baselines"), records.table("nulls")
    rows = []
    for d in ("ab", "ba"):
        bins, part = nulls[nulls["direction"] == d], table[table["direction"] == d]
        edges = np.append(bins["fired_from"].to_numpy(), bins["fired_to"].iloc[-1])
        own = _by_bin(part, edges, TC, NULL)
        untrained = _by_bin(part, edges, f"untrained {TC}", f"untrained {NULL}")
        rows.append(pd.DataFrame({"direction": d, "fired_from": edges[:-1], "above": own, "untrained": untrained}))
    found = pd.concat(rows, ignore_index=True).dropna()
    if len(found) < 2:
        return untestable(f"{len(found)} frequency bins hold {MIN_LATENTS} latents")
    worst = found.loc[found["above"].idxmin()]
    note = f"least in bins from {worst.fired_from:,.0f} firings: {worst.above:.3f} above chance"
    return Finding(
        Measured.of(found["above"].to_numpy(), unit="correlation"),
        Measured.of(found["untrained"].to_numpy(), unit="correlation"),
        found,
        note,
        open="" if worst.above > 0 else "not above chance in every bin",
    )


CLAIM = Claim(
    id="universality.chance-by-frequency",
    paper="universality",
    section="open: a null per frequency",
    statement="At every firing frequency latents are more similar across architectures than tokens and chance allow.",
    paper_number="no chance level reported",
    experiment=(
        "Token-conditional correlation minus its null (tokens exchanged among their like), by bin of firing counts."
    ),
    control="The same for the untrained models.",
    rule=Rule("above", 0.05, "beaten"),
    unit="bin of firing counts, both directions; one pair of trained models",
    would_change="A frequency at which tokens explain it all.",
    measure=measure,
    needs=("comparison",),
    cost=1,
)
