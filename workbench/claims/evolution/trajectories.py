"""Do trajectories belong to the model or to the crosscoder?

A latent's trajectory is its relative decoder norm over the snapshots. If that is a fact about the model, another
crosscoder of the same snapshots gives the same latent the same trajectory. Latents of two crosscoder seeds are matched
by what they do on held-out text, never by trajectories; then the matched trajectories are correlated. Were each the sum
of the model's part and of a part each crosscoder adds by itself, their correlation would be the model's share of the
variance, so one half is where the trajectory is more the model's than the crosscoder's.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.evolution.probe import held_rows
from workbench.claims.lab import Lab
from workbench.stats import interval95

MATCHED = 0.5  # correlation of activity from which two latents count as the same
FIRINGS = 30  # on the held-out text, for a latent to be matched
LEAST = 30  # matched latents a pair of seeds needs
DRAWS = 200
QUARTERS = 4  # groups of firing frequency, for partners of the same frequency
BINS = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0001)  # of the correlation of activity, for the table


def codes(lab: Lab, seed: int) -> sp.csr_array:
    """[N, F] codes of one crosscoder on the held-out rows of all snapshots."""
    from crosscoders import Crosscoder
    from workbench.analysis.latents.encoded import from_rows

    evolution = lab.evolution(seed)
    cc = Crosscoder.load(lab.workspace.get("dictionaries", evolution.id).path)
    parts = [cc.encode_sparse(x) for x in held_rows(lab, evolution)[0]]
    values, indices = (np.concatenate([p[i].numpy() for p in parts]) for i in (0, 1))
    row = np.arange(len(values))
    return sp.csr_array(from_rows(cc.d_sae, row, row, row, values, indices).matrix().tocsr())


def _kept(lab: Lab, seed: int) -> sp.csr_array:
    """:func:`codes`, made once for all pairs."""
    found: sp.csr_array = lab.once(("codes of a crosscoder", seed), lambda: codes(lab, seed))
    return found


def together(a_NS: np.ndarray, b_NS: np.ndarray) -> float:
    """Correlation of two sets of trajectories about their mean curves, all latents and snapshots together.

    The mean curve, which every latent shares, counts for nothing.
    """
    a, b = (x - x.mean(0) for x in (a_NS, b_NS))
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > 0 else float("nan")


def strata(kind: np.ndarray, n_fired: np.ndarray) -> np.ndarray:
    """[N] group of each latent: its kind and the quarter of firing frequency it lies in."""
    edges = np.quantile(n_fired, np.arange(1, QUARTERS) / QUARTERS)
    return pd.factorize(pd.Series(kind).astype(str) + np.searchsorted(edges, n_fired).astype(str))[0]


def exchanged(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[N] a random order in which everyone takes the place of one of its group; who is alone stays, which makes the
    null harder to beat.
    """
    out = np.empty(len(groups), np.int64)
    out[np.argsort(groups, kind="stable")] = np.lexsort((rng.random(len(groups)), groups))
    return out


def bounds(a_NS: np.ndarray, b_NS: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """What 97.5 % of two nulls stay below: partners of the same frequency and kind; snapshots of one side shuffled."""
    partners = [together(a_NS, b_NS[exchanged(groups, rng)]) for _ in range(DRAWS)]
    snapshots = [together(a_NS, b_NS[:, rng.permutation(b_NS.shape[1])]) for _ in range(DRAWS)]
    return interval95(partners)[1], interval95(snapshots)[1]


def relative(evolution: Any) -> np.ndarray:
    """[F, S] decoder norms over each latent's largest."""
    norms = evolution.norms(np.arange(len(evolution.table)))
    if norms is None:
        raise LookupError("the crosscoder over snapshots has no decoder norms")
    return np.asarray(norms, np.float64) / np.maximum(norms.max(1, keepdims=True), 1e-12)


def pair_of_seeds(lab: Lab, first: int, second: int) -> list[dict[str, Any]]:
    """Rows of the table for two crosscoders: all matched latents (``judged``), every latent with its best partner, and
    bins of the correlation of activity.

    Raises:
        LookupError: too few latents match, or there are no norms.
    """
    from workbench.analysis.correlation import max_pairwise_correlation

    ours, theirs = (_kept(lab, seed) for seed in (first, second))
    match = max_pairwise_correlation(ours, theirs, min_firings=FIRINGS)
    assert match.reverse is not None
    table = lab.evolution(first).table.sort_values("latent")
    a, b = relative(lab.evolution(first)), relative(lab.evolution(second))
    have = np.flatnonzero((match.partner >= 0) & table["alive"].to_numpy())
    to = match.partner[have]
    r = match.r[have]
    mutual = match.reverse.partner[to] == have
    groups = strata(table["kind"].to_numpy()[have], match.n_fired[have])
    matched = mutual & (r >= MATCHED)
    if matched.sum() < LEAST:
        raise LookupError(f"{matched.sum()} latents of seeds {first} and {second} match by activity; {LEAST} needed")
    rng = np.random.default_rng([first, second])

    def row(what: str, keep: np.ndarray) -> dict[str, Any]:
        low, high = (float(x) for x in (r[keep].min(), r[keep].max()))
        partners, snapshots = bounds(a[have[keep]], b[to[keep]], groups[keep], rng)
        return {
            "first": first,
            "second": second,
            "what": what,
            "n": int(keep.sum()),
            "of": len(have),
            "activity_low": low,
            "activity_high": high,
            "activity": float(r[keep].mean()),
            "trajectories": together(a[have[keep]], b[to[keep]]),
            "partners": partners,
            "snapshots": snapshots,
        }

    out = [row("matched", matched), row("best partner, whatever it is", np.ones(len(have), bool))]
    for low, high in pairwise(BINS):
        keep = (r >= low) & (r < high)
        if keep.sum() >= LEAST:
            out.append(row(f"activity from {low:g}", keep))
    return out


def measure(lab: Lab) -> Finding:
    """Correlation of matched trajectories per pair of seeds; control: the larger of the two nulls' bounds."""
    if lab.seeds < 2:
        return untestable("two seeds of the crosscoder are needed (--seeds 2 or more)")
    try:
        rows = [row for pair in combinations(lab.each_seed(), 2) for row in pair_of_seeds(lab, *pair)]
    except LookupError as e:
        return untestable(str(e.args[0]))
    table = pd.DataFrame(rows)
    own, all_ = (table[table["what"] == w] for w in ("matched", "best partner, whatever it is"))
    unit = "correlation"
    share = Measured.of(own["n"] / own["of"], unit="share of the latents")
    note = (
        f"{own['n'].min()}–{own['n'].max()} latents matched, {share.value:.0%} of those that fire; every latent with"
        f" its best partner {all_['trajectories'].mean():.2f}; bounds: same frequency and kind"
        f" {own['partners'].mean():.2f}, shuffled snapshots {own['snapshots'].mean():.2f}. One training run: what every"
        " crosscoder of this kind does alike counts as the model's here, and another run of the model may give the"
        " latent another trajectory"
    )
    return Finding(
        Measured.of(own["trajectories"], unit=unit),
        Measured.of(own[["partners", "snapshots"]].max(axis=1), unit=unit),
        table,
        note,
        more={
            "matched": share,
            "every latent": Measured.of(all_["trajectories"], unit=unit),
            "same frequency and kind": Measured.of(own["partners"], unit=unit),
            "shuffled snapshots": Measured.of(own["snapshots"], unit=unit),
        },
    )


CLAIM = Claim(
    id="evolution.trajectories-of-the-model",
    paper="evolution",
    section="open: do trajectories belong to the model or to the crosscoder?",
    statement=(
        "A latent's trajectory is more the model's than the crosscoder's: of latents that two crosscoders share, more"
        " than half of the variance of trajectories is shared."
    ),
    paper_number="not reported",
    experiment=(
        "Latents of two crosscoder seeds that are each other's best partner by activity on held-out text (r at least"
        " 0.5); correlation of their relative decoder norms about the mean curve, all latents and snapshots together,"
        " which is the shared part of the variance."
    ),
    control=(
        "The larger of what 97.5 % of two nulls stay below: partners exchanged among latents of the same kind and"
        " firing frequency; snapshots of one crosscoder shuffled."
    ),
    rule=Rule("above", 0.5, "beaten"),
    unit="pair of crosscoder seeds, every seed in several pairs; one training run of the model",
    would_change=(
        "Matched latents that share less than half of the variance, or partners of the same frequency and kind that"
        " share as much; a second training run, whose latents may go other ways."
    ),
    measure=measure,
    needs=("evolution",),
    cost=20,
)
