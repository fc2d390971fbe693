"""The order of phases over training runs: what one run of one model cannot say.

Four short runs of the bundled Transformer, from two further initialisations and on two further orders of batches, keep
a snapshot every 16 steps where copying forms. In each run the statistics of single tokens and of pairs, the attention
of heads and copying itself are read from the snapshots alone, without a dictionary, and the run is the unit.

Times are compared in snapshots, which are the same steps in every run; the steps themselves are named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.copying import SOLVED, copying_prompts
from workbench.claims.evolution.ngrams import FALL
from workbench.claims.lab import SOURCE, Lab

RUNS = ("mini-pythia-r0", "mini-pythia-r1", "mini-pythia-r2", "mini-pythia-r3")
DRAWS = 200
HALF = 0.5  # share of its whole rise after which something is there
LEAST = 0.25  # attention by which a head counts as looking there, as in circuits


def risen(curve: np.ndarray) -> int:
    """First index at which at least half of the rise from the least to the largest value is done."""
    return int(np.argmax(curve >= curve.min() + HALF * (curve.max() - curve.min())))


def _text(config: Any, tokenizer: Any, n_seq: int) -> np.ndarray:
    """[n, 128] windows of real text: those to copy from would teach the tables what copying is."""
    from workbench.corpus import plan_tokens

    plan = plan_tokens(config, tokenizer, n_seq=n_seq, ctx=128)
    return np.asarray(plan.tokens[plan.kinds == 0])


def observe(lab: Lab, model: str) -> pd.DataFrame:
    """One row per snapshot of a run: ``step``, ``kl_unigram``, ``kl_bigram``, ``kl_to_bigram``, ``accuracy`` of copying
    (of two alternatives), and the attention of the head that looks most to the ``previous`` token and to the token
    after the earlier occurrence (``induction``), each the mean over prompts.
    """

    def make() -> pd.DataFrame:
        from workbench.analysis.circuits.induction import attention_scores
        from workbench.analysis.evolution.attribution import accuracies
        from workbench.analysis.evolution.ngrams import count_ngrams
        from workbench.analysis.evolution.phases import language_phases
        from workbench.analysis.evolution.recipe import EvolveRecipe, resolve_sources
        from workbench.analysis.evolution.snapshots import Snapshots
        from workbench.corpus import CorpusConfig
        from workbench.models.load import load_tokenizer

        lab.say(f"reading the snapshots of {model}")
        tokenizer = load_tokenizer(SOURCE)
        sources = [s for s in resolve_sources(EvolveRecipe(model=model)) if s.step is not None]
        grams, held = lab.once(
            "n-grams over runs",
            lambda: (
                count_ngrams(_text(CorpusConfig(), tokenizer, 2000 if lab.quick else 8000), len(tokenizer)),
                _text(CorpusConfig(split="heldout"), tokenizer, 48 if lab.quick else 128),
            ),
        )
        prompts = copying_prompts(lab, tokenizer)
        found = Snapshots(sources)
        table = language_phases(found, grams, held).assign(accuracy=accuracies(found, prompts))
        scores = [attention_scores(found.model(i), prompts) for i in range(len(sources))]
        for name in ("previous", "induction"):
            table[name] = [float(s[name].mean(0).max()) for s in scores]
        table.insert(0, "step", [int(s.step or 0) for s in sources])
        return table

    made: pd.DataFrame = lab.once(("snapshots of a run", model), make)
    return made


def tables(lab: Lab) -> dict[str, pd.DataFrame]:
    """What was observed of every run, by the run's name."""
    return {run: observe(lab, lab.variant(run)) for run in RUNS}


def end_of_ngrams(curve: np.ndarray) -> int:
    """The inner snapshot that is nearest to the bigram table."""
    return 1 + int(curve[1:-1].argmin())


def reached(curve: np.ndarray) -> int:
    """The first snapshot that solves copying (in random order few end solved, so the first one counts)."""
    return int((curve >= SOLVED).argmax())


def fallen(curve: np.ndarray) -> int:
    """The first snapshot at which a divergence has done 90 % of its fall from its largest to its least value (bounds
    that snapshots in another order have too).
    """
    return int(np.argmax(curve <= curve.max() - FALL * (curve.max() - curve.min())))


Event = tuple[str, Callable[[np.ndarray], int]]  # a column and which of its snapshots is meant


def _apart(lab: Lab, first: Event, second: Event, why_not: Callable[[pd.DataFrame], str]) -> Finding:
    """Snapshots between two events, per run; control: the same with each run's snapshots in random order,
    which have no order but as many events.
    """
    rows: list[dict[str, Any]] = []
    null: list[float] = []
    for run, table in tables(lab).items():
        if why := why_not(table):
            return untestable(f"{run}: {why}")
        steps, curves = table["step"].to_numpy(), [table[c].to_numpy(float) for c, _ in (first, second)]
        at = [event(curve) for (_, event), curve in zip((first, second), curves, strict=True)]
        rng = np.random.default_rng(len(rows))
        shuffled = []
        for _ in range(DRAWS):
            order = rng.permutation(len(steps))
            a, b = (event(c[order]) for (_, event), c in zip((first, second), curves, strict=True))
            shuffled.append(b - a)
        null.append(float(np.mean(shuffled)))
        rows.append(
            {
                "run": run,
                "first": int(steps[at[0]]),
                "second": int(steps[at[1]]),
                "apart": at[1] - at[0],
                "shuffled": null[-1],
            }
        )
    table = pd.DataFrame(rows)
    note = "; ".join(f"{r.run}: step {r.first:,} and {r.second:,}" for r in table.itertuples())
    unit = "snapshots"
    return Finding(Measured.of(table["apart"], unit=unit), Measured.of(null, unit=unit), table, note)


def _always(table: pd.DataFrame) -> str:
    return ""


def _copies(table: pd.DataFrame) -> str:
    last = float(table["accuracy"].iloc[-1])
    return "" if last >= SOLVED else f"does not copy at its end (accuracy {last:.2f} of two alternatives)"


def _looks(table: pd.DataFrame) -> str:
    for column in ("previous", "induction"):
        if (most := float(table[column].max())) < LEAST:
            return f"no head ever looks there (attention {most:.2f} to the {column} position)"
    return ""


def unigram_first(lab: Lab) -> Finding:
    """Between 90 % of the fall of the unigram divergence and of the bigram divergence."""
    return _apart(lab, ("kl_unigram", fallen), ("kl_bigram", fallen), _always)


def before_copying(lab: Lab) -> Finding:
    """Between the least distance to the bigram table and the first snapshot that copies."""
    return _apart(lab, ("kl_to_bigram", end_of_ngrams), ("accuracy", reached), _copies)


def heads_in_order(lab: Lab) -> Finding:
    """Between half of the rise of the most previous-token attention and of the most induction attention."""
    return _apart(lab, ("previous", risen), ("induction", risen), _looks)


_SHUFFLED = "The same with every run's snapshots in random order."
_COMMON: dict[str, Any] = {
    "paper": "evolution",
    "control": _SHUFFLED,
    "rule": Rule("above", 0.0, "beaten"),
    "unit": "training run (initialisation and order of batches)",
    "needs": tuple(f"variant {run}" for run in RUNS),
    "cost": 60,
}
CLAIMS = [
    Claim(
        id="evolution.unigram-before-bigram-over-runs",
        section="5.1",
        statement="In every training run unigram statistics are learnt before bigram statistics.",
        paper_number="figure only, one run per size",
        experiment=(
            "Four training runs; snapshots between 90 % of the fall of the divergence from the unigram"
            " table and of that from the bigram table."
        ),
        would_change="Runs in which both come within one snapshot.",
        measure=unigram_first,
        **_COMMON,
    ),
    Claim(
        id="evolution.n-grams-before-induction-over-runs",
        section="5.2",
        statement="In every training run the statistical phase ends before the model copies from its context.",
        paper_number="one run per size",
        experiment=(
            "Four training runs; snapshots between the inner snapshot nearest to the bigram table and the"
            f" first that solves copying ({SOLVED} of two alternatives)."
        ),
        would_change="Runs that copy before they leave the bigram table.",
        measure=before_copying,
        **_COMMON,
    ),
    Claim(
        id="evolution.previous-token-heads-first-over-runs",
        section="4.2",
        statement="In every training run a head looks to the previous token before a head looks to what came after.",
        paper_number="latents: previous-token 1k-5k, induction 10k-100k",
        experiment=(
            "Four training runs, a snapshot every 16 steps where copying forms; snapshots between half of"
            " the rise of the largest mean attention to the previous token and of that to the token after the earlier"
            " occurrence, on induction prompts."
        ),
        would_change="Runs in which both rise within one snapshot.",
        measure=heads_in_order,
        **_COMMON,
    ),
]
