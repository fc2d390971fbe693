"""Claims read off a crosscoder over snapshots: orders of latents, and what a task rests on.

The unit is a seed of the crosscoder. All of them look at one training of one model: they say how far the method agrees
with itself, not how far trainings of models do, and every claim says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab
from workbench.stats import interval95

UNIT = "seed of the crosscoder; one training run of the model"
TOP = 16  # latents that carry a task
KEPT = 32  # a few dozen
DRAWS = 200
AT_THE_START = "At step 0 nothing but the token is there: latents of tokens come first whatever training does."

Numbers = dict[str, Any]  # value, control, note of one seed


def per_seed(lab: Lab, read: Callable[[Any, int], Numbers], unit: str) -> Finding:
    """One number and one control per seed of the crosscoder."""
    rows = []
    for seed in lab.each_seed():
        try:
            rows.append({"seed": seed} | read(lab.evolution(seed), seed))
        except LookupError as e:
            return untestable(str(e.args[0]))
    table = pd.DataFrame(rows)
    notes = table["note"].tolist() if "note" in table else [""]
    shown = "; ".join(dict.fromkeys(notes))
    return Finding(
        Measured.of(table["value"], unit=unit),
        Measured.of(table["control"], unit=unit),
        table,
        shown,
        open=next((o for o in table.get("open", []) if o), ""),
    )


def _row(evolution: Any, claim: str) -> pd.Series:
    statistics = evolution.statistics
    found = None if statistics is None else statistics[statistics["claim"] == claim]
    if found is None or not len(found):
        raise LookupError("the crosscoder's analysis did not compute it")
    row = found.iloc[0]
    if row["verdict"] in ("too few", "not solved"):
        raise LookupError(f"{row['verdict']}: {row['note']}")
    return row


def order(claim: str) -> Callable[[Any, int], Numbers]:
    """A statistic of the analysis beside what 97.5 % of shuffled snapshot labels stay below.

    Seeds of a crosscoder share the model's one order of snapshots, so their scatter says nothing of how far an order
    comes by chance: what is held against the null is the null's bound, not its mean.
    """

    def read(evolution: Any, seed: int) -> Numbers:
        row = _row(evolution, claim)
        return {"value": row["value"], "control": row["null_high"], "note": str(row["note"] or "")}

    return read


def share(name: str) -> Callable[[Any, int], Numbers]:
    """Share of the alive latents of a class; control: of those that are strongest at step 0 and gone at the end."""

    def read(evolution: Any, seed: int) -> Numbers:
        alive = evolution.table[evolution.table["alive"]]
        norms = evolution.norms(alive["latent"].to_numpy())
        if norms is None:
            raise LookupError("the crosscoder has no decoder norms")
        gone = norms[:, -1] < 0.1 * norms.max(1)
        return {"value": float((alive["class"] == name).mean()), "control": float(gone.mean())}

    return read


def lead(evolution: Any, seed: int) -> Numbers:
    """Snapshots by which the latents that carry induction emerge before it is solved (median); control: as many alive
    latents at random.
    """
    from workbench.analysis.evolution.phases import first_solved

    found, phases = evolution.attribution_latents, evolution.phases
    if found is None or "accuracy_induction" not in phases:
        raise LookupError("induction was not attributed")
    solved = first_solved(phases["accuracy_induction"])
    last = found[(found["task"] == "induction") & (found["source"] == phases["source"].iloc[-1])]
    if solved < 0 or not len(last):
        raise LookupError("induction is not solved at any snapshot")
    best = last.reindex(last["attribution"].abs().sort_values(ascending=False).index)["latent"].head(TOP)
    emergence = evolution.table.set_index("latent")["emergence_0.5_index"]
    alive = evolution.table[evolution.table["alive"]]["latent"].to_numpy()
    rng = np.random.default_rng(seed)

    def median(latents: Any) -> float:
        e = emergence.loc[latents].to_numpy()
        return float(solved - np.median(e[e >= 0])) if (e >= 0).any() else np.nan

    value = median(best)
    random = np.nanmean([median(rng.choice(alive, TOP, replace=False)) for _ in range(DRAWS)])
    near = "within one snapshot, which is as far as snapshots resolve" if abs(value) <= 1 else ""
    return {
        "value": value,
        "control": float(random),
        "note": f"solved from step {phases['step'].iloc[solved]}",
        "open": near,
    }


def kept(task: str, control: str) -> Callable[[Any, int], Numbers]:
    """Share of a task's metric that the :data:`KEPT` highest latents by attribution restore alone, mean over snapshots
    that solve it; control: as many by another ranking.
    """

    def read(evolution: Any, seed: int) -> Numbers:
        t = evolution.attribution
        if t is None:
            raise LookupError("nothing was attributed")
        t = t[(t["task"] == task) & (t["mode"] == "keep")]
        known = sorted(k for k in t["k"].unique() if k <= KEPT)
        if not known:
            raise LookupError(f"{task} was not attributed at up to {KEPT} latents")
        wide = t[t["k"] == known[-1]].pivot_table(index="source", columns="ranking", values="share")
        if control not in wide or "attribution" not in wide:
            raise LookupError(f"the {control} control has too few latents")
        wide = wide.dropna(subset=["attribution", control])
        note = (
            f"{known[-1]} latents restore {wide['attribution'].min():.2f}-{wide['attribution'].max():.2f}"
            f" over {len(wide)} snapshots"
        )
        few = f"{len(wide)} snapshot solves it only" if len(wide) < 2 else ""
        return {"value": wide["attribution"].mean(), "control": wide[control].mean(), "note": note, "open": few}

    return read


def dimensions(evolution: Any, seed: int) -> Numbers:
    """How far the total dimensionality falls below the lower of its ends, as a share of the last; control: what 97.5 %
    of random orders of the snapshots stay below.
    """
    d = evolution.phases["dimensionality"].to_numpy(float)
    rng = np.random.default_rng(seed)

    def fall(x: np.ndarray) -> float:
        return float((min(x[0], x[-1]) - x[1:-1].min()) / d[-1])

    null = interval95([fall(rng.permutation(d)) for _ in range(DRAWS)])[1]
    at = 1 + int(d[1:-1].argmin())
    note = f"lowest at step {evolution.phases['step'].iloc[at]}; the place depends on the crosscoder, the fall does not"
    return {"value": fall(d), "control": float(null), "note": note}


def _claim(
    name: str, section: str, statement: str, number: str, read: Any, unit: str, rule: Rule, **more: Any
) -> Claim:
    return Claim(
        id=f"evolution.{name}",
        paper="evolution",
        section=section,
        statement=statement,
        paper_number=number,
        rule=rule,
        unit=UNIT,
        measure=lambda lab: per_seed(lab, read, unit),
        needs=("evolution",),
        cost=1,
        **more,
    )


_ORDER: dict[str, Any] = {
    "experiment": "Median emergence (half of the largest decoder norm) of the one kind of latents minus the other's.",
    "control": "What 97.5 % of shuffled labels of the snapshots stay below.",
}
_AFTER = Rule("above", 1.0, "beaten")  # more than one snapshot, which is as far as snapshots resolve


def _kinds(first: str, second: str, number: str, **more: Any) -> Claim:
    return _claim(
        f"{first}-before-{second}",
        "4.4",
        f"{first.capitalize().replace('-', ' ')} latents emerge before {second.replace('-', ' ')} latents.",
        number,
        order(f"{first} latents emerge before {second} latents"),
        "snapshots",
        _AFTER,
        would_change="A median order of at most one snapshot.",
        **_ORDER,
        **more,
    )


def _attribution(name: str, section: str, statement: str, task: str, control: str, level: float, words: str) -> Claim:
    return _claim(
        name,
        section,
        statement,
        "a few dozen latents break or restore the task; random controls only",
        kept(task, control),
        "share restored",
        Rule("above", level, "beaten"),
        experiment=(
            f"Share of the metric of {task} that the {KEPT} highest latents by attribution restore, all"
            f" others corrupted."
        ),
        control=words,
        would_change=f"{KEPT} latents that restore {'less than 0.8' if level else 'no more than the control'}.",
    )


CLAIMS = [
    _claim(
        "initialisation-latents",
        "4.2",
        "Some latents exist at initialisation.",
        "a group present at step 0 that drops at step 128 and rebounds",
        share("initialisation"),
        "share of the alive",
        Rule("above", 0.05, "beaten"),
        experiment="Share of the alive latents whose decoder norm at step 0 is at least half of its largest.",
        control="Share of the alive latents that are gone at the end.",
        construction=(
            "Step 0 is a source with the same weight as the others, so some latents must have norm"
            " there; their direction"
            " at step 0 has nothing to do with their last one."
        ),
    ),
    _claim(
        "emergent-latents",
        "4.2",
        "Other latents are absent at the start and emerge during training.",
        "begin around step 1,000 of 143,000",
        share("emergent"),
        "share of the alive",
        Rule("above", 0.05, "beaten"),
        experiment="Share of the alive latents without a tenth of their largest decoder norm at step 0.",
        control="Share of the alive latents that are gone at the end.",
        unsettled=(
            "the share went from 0 to 2 and to 12 % as the crosscoder's own training was improved,"
            " on the same model: it"
            " measures the crosscoder"
        ),
        would_change="A share that stays when gate, refit and length of training are varied.",
    ),
    _claim(
        "complexity-and-emergence",
        "4.4",
        "More complex latents emerge later.",
        "r = 0.309, p = 0.002 (about 100 latents, complexity by a language model)",
        order("complex latents emerge later (Spearman, firing frequency partialled out)"),
        "partial rank correlation",
        Rule("above", 0.0, "beaten"),
        experiment="Spearman of the complexity proxy with the emergence step, firing frequency partialled out.",
        control="What 97.5 % of shuffled labels of the snapshots stay below.",
        would_change="Shuffled snapshots that give as much.",
    ),
    _kinds("token", "previous-token", "previous-token 1k-5k", construction=AT_THE_START),
    _kinds("previous-token", "induction", "1k-5k against 10k-100k"),
    _kinds("token", "induction", "early against 10k-100k", construction=AT_THE_START),
    _kinds("token", "context", "early against 10k-100k", construction=AT_THE_START),
    _kinds("induction", "context", "both 10k-100k"),
    _claim(
        "norm-free-emergence",
        "open: reviewers' circularity",
        "Emergence by decoder norm is not an artefact of the penalty on it.",
        "not reported",
        order("emergence by decoder norm agrees with the norm-free emergence (Spearman)"),
        "rank correlation",
        Rule("above", 0.5, "beaten"),
        experiment="Spearman of emergence by decoder norm with emergence by latent scaling on held-out rows.",
        control="What 97.5 % of shuffled labels of the snapshots stay below.",
        construction=(
            "The decoders are refitted by least squares, for which the scaling that latent scaling looks for is 1; and"
            " Top-K has no penalty on norms."
        ),
    ),
    _claim(
        "turning-point",
        "4.3",
        "Directions before and after a turning point are nearly orthogonal; it lies where the statistical phase ends.",
        "around step 1,000",
        lambda e, seed: _turning(e),
        "snapshots apart",
        Rule("at most", 1.0, "outside"),
        experiment="Best two-group split of the cosine matrix against the end of the n-gram phase, in snapshots.",
        control="The split of directions that drift evenly, which lies in the middle.",
        unsettled="the split moves with the number of snapshots and with the crosscoder's training recipe, both ways",
        would_change="A split that stays with other snapshots and other recipes.",
    ),
    _claim(
        "dimensionality",
        "5.2",
        "Total feature dimensionality first compresses, then expands.",
        "expands to about 70 %",
        dimensions,
        "of the last",
        Rule("above", 0.05, "beaten"),
        experiment="How far the dimensionality of the alive decoder rows falls below the lower of its ends.",
        control="What 97.5 % of random orders of the snapshots stay below.",
        would_change="A minimum at either end.",
    ),
    _claim(
        "latents-precede-induction",
        "5.3; open: does a skill's emergence follow its latents'?",
        "The latents that carry induction emerge before the model solves it.",
        "not reported",
        lead,
        "snapshots",
        Rule("above", 0.0, "beaten"),
        experiment=(
            f"Snapshots by which the {TOP} latents of highest attribution emerge before induction is solved (median)."
        ),
        control="As many alive latents at random.",
        would_change="More than one snapshot either way; snapshots every 16 steps between 1,088 and 1,216.",
    ),
    _attribution(
        "attribution-beats-magnitude",
        "5.3; open: stronger controls",
        "Latents ranked by attribution carry induction better than those ranked by the size of their change.",
        "induction",
        "magnitude",
        0.0,
        "As many latents with the largest change of activation times decoder norm.",
    ),
    _attribution(
        "attribution-beats-frequency",
        "5.3; open: stronger controls",
        "Latents ranked by attribution carry induction better than others that fire as often.",
        "induction",
        "frequency",
        0.0,
        "As many random latents of the same firing frequency.",
    ),
    _attribution(
        "attribution-faithful",
        "5.3",
        f"{KEPT} latents carry induction at every snapshot that solves it: alone they restore at least 0.8 of it.",
        "induction",
        "random",
        0.8,
        "As many random latents that are active on the same prompts.",
    ),
    _attribution(
        "agreement-attribution-faithful",
        "5.3, subject-verb agreement",
        f"{KEPT} latents carry subject-verb agreement at every snapshot that solves it.",
        "agreement",
        "random",
        0.8,
        "As many random latents that are active on the same prompts.",
    ),
]


def _turning(evolution: Any) -> Numbers:
    """Snapshots between the turning point of directions and the end of the n-gram phase."""
    from workbench.analysis.evolution.phases import end_of_ngram_phase

    row = _row(evolution, "decoder directions turn where the n-gram phase ends (within one snapshot)")
    end = end_of_ngram_phase(evolution.phases["kl_to_bigram"])
    middle = len(evolution.phases) // 2
    return {"value": abs(float(row["value"]) - end), "control": float(abs(middle - end)), "note": str(row["note"])}
