"""The turning point is where the statistical phase ends, and not where the learning rate's warm-up ends."""

from __future__ import annotations

from typing import Any

from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab

BASE, LONGER = ("mini-pythia", 100), ("mini-pythia-w1000", 1000)  # models and their warm-up steps
RESOLUTION = 200  # steps between snapshots
SEQUENCES = {True: 64, False: 192}


def _phase_end(lab: Lab, model: str) -> tuple[int, Any]:
    """(step at which the model is closest to the bigram table, table of its snapshots)."""

    def make() -> tuple[int, Any]:
        import numpy as np

        from workbench.analysis.evolution.ngrams import count_ngrams
        from workbench.analysis.evolution.phases import end_of_ngram_phase, language_phases
        from workbench.analysis.evolution.recipe import EvolveRecipe, resolve_sources
        from workbench.analysis.evolution.snapshots import Snapshots
        from workbench.corpus import CorpusConfig, plan_tokens
        from workbench.models.load import load_tokenizer

        tokenizer = load_tokenizer("mini-pythia")
        sources = [s for s in resolve_sources(EvolveRecipe(model=model)) if s.step is not None and s.step <= 2560]
        text = plan_tokens(CorpusConfig(), tokenizer, n_seq=2000 if lab.quick else 8000, ctx=128)
        held = plan_tokens(CorpusConfig(split="heldout"), tokenizer, n_seq=SEQUENCES[lab.quick], ctx=128)
        grams = count_ngrams(text.tokens[text.kinds == 0], len(tokenizer))
        table = language_phases(Snapshots(sources), grams, held.tokens[held.kinds == 0])
        table.insert(0, "step", [s.step for s in sources])
        table.insert(0, "model", model)
        return int(np.asarray(table["step"])[end_of_ngram_phase(table["kl_to_bigram"])]), table

    return lab.once(("phase end", model), make)


def measure(lab: Lab) -> Finding:
    """By how many steps the end of the n-gram phase moves when the warm-up ends 900 steps later; control: those 900
    steps.
    """
    import pandas as pd

    longer = lab.variant(LONGER[0])
    first, a = _phase_end(lab, BASE[0])
    second, b = _phase_end(lab, longer)
    moved, warmed = second - first, LONGER[1] - BASE[1]
    table = pd.concat([a, b], ignore_index=True)
    note = f"n-gram phase ends at step {first:,} with {BASE[1]} warm-up steps and at step {second:,} with {LONGER[1]:,}"
    return Finding(
        Measured(abs(moved), abs(moved) - RESOLUTION, abs(moved) + RESOLUTION, len(table), "steps"),
        Measured(warmed, warmed, warmed, len(table), "steps"),
        table,
        note,
    )


CLAIM = Claim(
    id="evolution.warm-up",
    paper="evolution",
    section="open: is the turning point the warm-up's end?",
    statement="The statistical phase does not end because the learning rate's warm-up ends.",
    paper_number="one warm-up only; both lie near step 1,000",
    experiment=(
        "The same model and batches with 100 and with 1,000 warm-up steps: shift of the step at which it is closest to"
        " the bigram table."
    ),
    control="The shift of the warm-up's end itself, 900 steps.",
    rule=Rule("at most", 600, "outside"),
    unit="snapshot; one training run per warm-up",
    would_change="A phase that ends later by as much as the warm-up.",
    measure=measure,
    needs=("variant mini-pythia-w1000",),
    cost=60,
)
