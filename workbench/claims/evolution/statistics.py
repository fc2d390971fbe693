"""Claims read off the statistics of a crosscoder over snapshots, over the seeds of the crosscoder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, untestable
from workbench.claims.lab import Lab

# id -> (claim in statistics.parquet, section, statement, the paper's number, control)
ROWS = {
    "initialisation-latents": (
        "initialisation latents exist (at least 5 % of the alive)",
        "4.2",
        "Some latents exist at initialisation.",
        "a group present at step 0 that drops at step 128 and rebounds",
        "None beyond the definition: step 0 is an untrained model; read with the norm-free check.",
    ),
    "emergent-latents": (
        "emergent latents exist (at least 5 % of the alive)",
        "4.2",
        "Other latents are absent at the start and emerge during training.",
        "begin around step 1,000 of 143,000",
        "None beyond the definition; crosscoders over copies of one snapshot give none (tested).",
    ),
    "complexity-and-emergence": (
        "complex latents emerge later (Spearman, firing frequency partialled out)",
        "4.4",
        "More complex latents emerge later.",
        "r = 0.309, p = 0.002 (about 100 latents, complexity by a language model)",
        "Shuffled snapshot labels.",
    ),
    "norm-free-emergence": (
        "emergence by decoder norm agrees with the norm-free emergence (Spearman)",
        "open: reviewers' circularity",
        "Emergence by decoder norm is not an artefact of the penalty on it.",
        "not reported",
        "None: the two definitions share only the activations.",
    ),
    "n-gram-phase-ends": (
        "the n-gram phase ends inside the run (distance to the bigram table has an interior minimum)",
        "5.1",
        "Training first approaches the bigram table and then moves away from it.",
        "loss near the entropies, divergences fall quickly",
        "The untrained and the final snapshot.",
    ),
    "unigram-before-bigram": (
        "unigram statistics are learnt before bigram statistics (minima of the divergences)",
        "5.1",
        "Unigram statistics are learnt before bigram statistics.",
        "figure only",
        "None beyond the order itself.",
    ),
    "n-grams-before-induction": (
        "the n-gram phase ends before induction is solved (accuracy >= 0.8)",
        "5.2",
        "The statistical phase ends before induction appears.",
        "induction latents 10k-100k, after the phase",
        "None beyond the order itself.",
    ),
    "turning-point": (
        "decoder directions turn where the n-gram phase ends (within one snapshot)",
        "4.3",
        "Directions before and after a turning point are nearly orthogonal; it lies where the statistical phase ends.",
        "around step 1,000",
        "Bootstrap over latents.",
    ),
    "dimensionality": (
        "total dimensionality first falls, then grows (minimum inside the run)",
        "5.2",
        "Total feature dimensionality first compresses, then expands.",
        "expands to about 70 %",
        "A minimum at either end would refute it.",
    ),
    "token-before-previous-token": (
        "token latents emerge before previous-token latents",
        "4.4",
        "Token latents emerge before previous-token latents.",
        "previous-token 1k-5k",
        "Shuffled snapshot labels.",
    ),
    "previous-token-before-induction": (
        "previous-token latents emerge before induction latents",
        "4.4",
        "Previous-token latents emerge before induction latents.",
        "1k-5k against 10k-100k",
        "Shuffled snapshot labels.",
    ),
    "token-before-induction": (
        "token latents emerge before induction latents",
        "4.4",
        "Token latents emerge before induction latents.",
        "early against 10k-100k",
        "Shuffled snapshot labels.",
    ),
    "token-before-context": (
        "token latents emerge before context latents",
        "4.4",
        "Token latents emerge before context-sensitive latents.",
        "early against 10k-100k",
        "Shuffled snapshot labels.",
    ),
    "induction-before-context": (
        "induction latents emerge before context latents",
        "4.4",
        "Induction latents emerge before context-sensitive latents.",
        "both 10k-100k",
        "Shuffled snapshot labels.",
    ),
    "latents-precede-induction": (
        "the 16 latents that carry induction emerge before it is solved (median)",
        "5.3; open: does a skill's emergence follow its latents'?",
        "The latents that carry induction emerge before the model solves it.",
        "not reported",
        "None beyond the order itself.",
    ),
    "attribution-beats-magnitude": (
        "induction: top latents by attribution beat the magnitude control at every solved snapshot",
        "5.3; open: stronger controls",
        "Latents ranked by attribution carry induction better than those ranked by the size of their change.",
        "random controls only",
        "As many latents with the largest change of activation times decoder norm.",
    ),
    "attribution-beats-frequency": (
        "induction: top latents by attribution beat the frequency control at every solved snapshot",
        "5.3; open: stronger controls",
        "Latents ranked by attribution carry induction better than others that fire as often.",
        "random controls only",
        "As many random latents of the same firing frequency.",
    ),
    "agreement-attribution-beats-random": (
        "agreement: top latents by attribution beat the random control at every solved snapshot",
        "5.3, subject-verb agreement",
        "A few dozen latents carry subject-verb agreement at every snapshot.",
        "a few dozen latents break or restore the task",
        "As many random latents that are active on the same prompts.",
    ),
    "attribution-beats-random": (
        "induction: top latents by attribution beat the random control at every solved snapshot",
        "5.3",
        "A few dozen latents carry a task at every snapshot.",
        "a few dozen latents break or restore the task",
        "As many random latents that are active on the same prompts.",
    ),
}


def _measure(claim: str) -> Callable[[Lab], Finding]:
    def measure(lab: Lab) -> Finding:
        """The claim's statistic over the seeds of the crosscoder; the verdict of every seed is in the table."""
        rows = []
        for seed in lab.each_seed():
            statistics = lab.evolution(seed).statistics
            found = None if statistics is None else statistics[statistics["claim"] == claim]
            if found is None or not len(found):
                return untestable("the crosscoder's analysis did not compute it")
            rows.append({"seed": seed} | found.iloc[0].to_dict())
        table = pd.DataFrame(rows)
        if set(table["verdict"]) <= {"too few", "not solved"}:
            return untestable(f"{', '.join(sorted(set(table['verdict'])))}: {table['note'].iloc[0]}")
        low, high = table["low"].min(), table["high"].max()
        value = Measured(
            float(table["value"].mean()),
            None if np.isnan(low) else float(low),
            None if np.isnan(high) else float(high),
            int(table["n"].sum()),
        )
        control = None
        if table["null_mean"].notna().any():
            control = Measured(
                float(table["null_mean"].mean()),
                float(table["null_low"].min()),
                float(table["null_high"].max()),
                int(table["null_n"].sum()),
            )
        agree = int((table["verdict"] == "found").sum())
        return Finding(value, control, table, f"found in {agree} of {len(table)} seeds; {table['note'].iloc[0]}")

    return measure


def in_every_seed(finding: Finding) -> bool:
    """Each seed's own criterion (fixed in the analysis, null included) is met."""
    return finding.table is not None and bool((finding.table["verdict"] == "found").all())


CLAIMS = [
    Claim(
        id=f"evolution.{name}",
        paper="evolution",
        section=section,
        statement=statement,
        paper_number=number,
        experiment=f"Crosscoder over the snapshots of the bundled Transformer: {claim}.",
        control=control,
        criterion=(
            "The analysis' own criterion (interval on the claimed side, outside its null) in every seed of the"
            " crosscoder."
        ),
        measure=_measure(claim),
        holds=in_every_seed,
        needs=("evolution",),
        cost=1,
    )
    for name, (claim, section, statement, number, control) in ROWS.items()
]
