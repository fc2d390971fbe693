"""When in training do the two architectures become similar beyond the token: with n-grams, or with copying?

Both models saw the same batches, so snapshots of equal steps have seen the same text. At every pair of snapshots a
dictionary per model is trained at one middle layer, all alike, and their maximal correlation is taken given the token,
above what is left when tokens are exchanged among their like. Which part of its rise is there before either model
copies from its context?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.copying import SOLVED, copying_prompts
from workbench.claims.lab import Lab
from workbench.claims.small_dictionaries import LATENTS, K, codes_of, match_with_null, rows_at, train_small

MODELS = ("mini-pythia", "mini-mamba")
SITES = ("L1R", "L2R")  # two thirds and three quarters of the way
PAIRS = (  # steps of the Transformer and of the Mamba, as near as snapshots are; the last is the end of both trainings
    (0, 0),
    (16, 16),
    (64, 64),
    (256, 256),
    (512, 512),
    (1088, 1024),
    (2560, 2560),
    (4608, 4352),
    (9000, 8192),
    (9000, 27000),
)
QUICK = ((0, 0), (512, 512), (2560, 2560), (9000, 27000))
RISE = 0.05  # correlation the whole rise must reach, or there is nothing to divide


def curve_of_copying(pairs: Sequence[tuple[int, int]], accuracy: np.ndarray) -> int:
    """The last pair at which neither model has solved copying, given accuracies [2, pairs]; -1 if the first already
    does or none ever does.
    """
    from workbench.analysis.evolution.phases import first_solved

    solved = [first_solved(a, level=SOLVED) for a in accuracy]
    known = [s for s in solved if s >= 0]
    return min(known) - 1 if known else -1


def share_done(curve: np.ndarray, at: int) -> float:
    """Share of the rise of a curve from its first to its last value that is done at index ``at``."""
    return float((curve[at] - curve[0]) / (curve[-1] - curve[0]))


def half_done(curve: np.ndarray) -> int:
    """First index at which at least half of the rise is done."""
    return int(np.argmax(curve >= curve[0] + (curve[-1] - curve[0]) / 2))


def fallen(curve: np.ndarray, at: int) -> float:
    """Share of a curve's fall, from its first to its least value, that is done at index ``at``."""
    return float((curve[0] - curve[at]) / (curve[0] - curve.min()))


def above_null(a: sp.csr_array, b: sp.csr_array, cells: Any, rng: np.random.Generator) -> tuple[float, float]:
    """(mean maximal correlation given the token, the same with tokens exchanged among their like), over latents of
    both sides; codes [N, F] on the rows of ``cells``.
    """
    out = []
    for match in match_with_null(a, b, cells, rng):
        assert match.reverse is not None
        both = [r[np.isfinite(r)] for r in (match.r, match.reverse.r)]
        out.append(float(np.mean([r.mean() for r in both])) if all(map(len, both)) else float("nan"))
    return out[0], out[1]


class _Text:
    """Sequences to train and to compare on, and the cells of the latter's tokens."""

    def __init__(self, lab: Lab):
        from workbench.analysis.comparison.given_token import TokenCells

        store = lab.store()
        held = [i for i in store.heldout if i not in set(store.skipped)]
        train = [i for i in range(store.n_seq) if i not in set(held) | set(store.skipped)]
        n_train, n_test = (256, 128) if lab.quick else (768, 200)
        self.train, self.test = (
            torch.as_tensor(np.stack([store.sequence_tokens(i) for i in part])).long()
            for part in (train[:n_train], held[:n_test])
        )
        ids = self.test[:, 1:].numpy()
        seq = np.repeat(np.arange(len(ids)), ids.shape[1])
        self.cells = TokenCells.of(ids.reshape(-1), seq)


def similarities(lab: Lab, pairs: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """One row per seed and pair: ``given_token``, its ``null``; and, at the last pair, ``ours`` and ``theirs``:
    the trained Transformer against the Mamba of every earlier pair, and the reverse.
    """
    from workbench.models.load import load_model
    from workbench.models.sites import hooks_of

    text, steps = _Text(lab), 150 if lab.quick else 300
    codes: dict[tuple[int, int, int], sp.csr_array] = {}  # (which model, step, seed)
    for m, (model, site) in enumerate(zip(MODELS, SITES, strict=True)):
        for step in dict.fromkeys(p[m] for p in pairs):
            bridge, hook = load_model(model, revision=f"step{step}"), hooks_of(site)[1]
            train, test = rows_at(bridge, hook, text.train), rows_at(bridge, hook, text.test)
            for seed in lab.each_seed():
                found = codes_of(train_small(train, seed, steps), test)
                codes[m, step, seed] = sp.csr_array(found[text.cells.rows])
    out: list[dict[str, Any]] = []
    for seed in lab.each_seed():
        for i, (ours, theirs) in enumerate(pairs):
            rng = np.random.default_rng([seed, i])
            given, null = above_null(codes[0, ours, seed], codes[1, theirs, seed], text.cells, rng)
            mixed = above_null(codes[0, pairs[-1][0], seed], codes[1, theirs, seed], text.cells, rng)
            out.append(
                {
                    "seed": seed,
                    "pair": i,
                    "transformer": ours,
                    "mamba": theirs,
                    "given_token": given,
                    "null": null,
                    "above": given - null,
                    "trained_transformer": mixed[0] - mixed[1],
                }
            )
    return pd.DataFrame(out)


def events(lab: Lab, pairs: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """One row per model and pair: accuracy of copying, distance to the bigram table and divergence from it."""
    from workbench.analysis.evolution.attribution import accuracies
    from workbench.analysis.evolution.ngrams import count_ngrams
    from workbench.analysis.evolution.phases import language_phases
    from workbench.analysis.evolution.snapshots import Snapshots, Source
    from workbench.corpus import CorpusConfig, plan_tokens
    from workbench.models.load import load_tokenizer
    from workbench.models.sites import hooks_of

    tokenizer = load_tokenizer(MODELS[0])
    text = plan_tokens(CorpusConfig(), tokenizer, n_seq=1500 if lab.quick else 4000, ctx=128)
    held = plan_tokens(CorpusConfig(split="heldout"), tokenizer, n_seq=48 if lab.quick else 128, ctx=128)
    grams = count_ngrams(text.tokens[text.kinds == 0], len(tokenizer))
    prompts = copying_prompts(lab, tokenizer)
    out = []
    for m, (model, site) in enumerate(zip(MODELS, SITES, strict=True)):
        steps = list(dict.fromkeys(p[m] for p in pairs))
        found = Snapshots([Source(f"step{s}", model, f"step{s}", hooks_of(site)[1], s) for s in steps])
        table = language_phases(found, grams, held.tokens[held.kinds == 0]).assign(accuracy=accuracies(found, prompts))
        table = table.assign(step=steps).set_index("step").loc[[p[m] for p in pairs]].reset_index()
        out.append(table.assign(model=model, pair=range(len(pairs))))
    return pd.concat(out, ignore_index=True)


def measured(lab: Lab) -> tuple[pd.DataFrame, pd.DataFrame, Sequence[tuple[int, int]]]:
    """(similarities, events, pairs) of this size of run."""
    pairs = QUICK if lab.quick else PAIRS
    found: tuple[pd.DataFrame, pd.DataFrame] = lab.once(
        "similarity in training", lambda: (similarities(lab, pairs), events(lab, pairs))
    )
    return *found, pairs


def measure(lab: Lab) -> Finding:
    """Share of the rise that is done at the last pair before either model copies, per seed; control: the share of the
    fall of the divergence from the bigram table that is done there, in the model where it is less.
    """
    table, about, pairs = measured(lab)
    accuracy, to_bigram, bigram = (
        about.pivot(index="model", columns="pair", values=c).loc[list(MODELS)].to_numpy(float)
        for c in ("accuracy", "kl_to_bigram", "kl_bigram")
    )
    at = curve_of_copying(pairs, accuracy)
    if at < 1:
        return untestable("no pair of snapshots lies between the first and the first that copies")
    curves = table.pivot(index="seed", columns="pair", values="above").to_numpy(float)
    mixed = table.pivot(index="seed", columns="pair", values="trained_transformer").to_numpy(float)
    rise = Measured.of(curves[:, -1] - curves[:, 0], unit="correlation")
    learnt = [fallen(b, at) for b in bigram]
    steps = [f"{a:,}/{b:,}" for a, b in pairs]
    ends = [1 + int(d[1:-1].argmin()) for d in to_bigram]
    half = sorted({half_done(c) for c in curves})
    note = (
        f"at steps {steps[at]} (Transformer/Mamba) neither copies (accuracy {accuracy[0, at]:.2f} and"
        f" {accuracy[1, at]:.2f} of two alternatives); half of the rise of {rise.value:.3f} is done at"
        f" {' or '.join(steps[i] for i in half)}; the n-gram phase ends at step {pairs[ends[0]][0]:,} and"
        f" {pairs[ends[1]][1]:,}. One training run of each model on the same batches: seeds are the dictionaries'"
    )
    few = f"the whole rise is {rise.value:.3f}: nothing to divide" if (rise.low or 0) < RISE else ""
    return Finding(
        Measured.of([share_done(c, at) for c in curves], unit="of the rise"),
        Measured(min(learnt), None, None, int(about["n"].iloc[0]), "of the fall"),
        table.merge(
            about.pivot(index="pair", columns="model", values="accuracy").add_prefix("copying ").reset_index(),
            on="pair",
        ),
        note,
        open=few,
        more={
            "rise": rise,
            "untrained": Measured.of(curves[:, 0], unit="correlation"),
            "copying done there": Measured.of([share_done(a, at) for a in accuracy], unit="of the rise"),
            "with the Transformer trained": Measured.of((mixed[:, at] - curves[:, 0]) / (curves[:, -1] - curves[:, 0])),
        },
    )


CLAIM = Claim(
    id="universality.similarity-comes-with-copying",
    paper="universality",
    section="open: when in training does similarity arise?",
    statement=(
        "The similarity of the two architectures given the token comes with copying: less than half of its rise"
        " is there"
        " before either model copies from its context."
    ),
    paper_number="not reported",
    experiment=(
        f"Dictionaries of {LATENTS} latents (k = {K}) at one middle layer of both models at snapshots of equal steps;"
        " mean maximal correlation given the token, above the same with tokens exchanged among their like, in both"
        " directions. Share of its rise from step 0 to the end of training that is done at the last pair of"
        " snapshots at"
        f" which neither model solves induction ({SOLVED} of two alternatives)."
    ),
    control=(
        "What n-grams alone have taught by then: the share of the fall of the divergence from the bigram table that is"
        " done there, in the model where it is less. It must be more than half, or the place tells nothing apart."
    ),
    rule=Rule("below", 0.5, "outside"),
    unit="seed of the dictionaries; one training run of each model",
    would_change="Half of the rise before copying; models trained on other batches, or without windows to copy from.",
    measure=measure,
    needs=("demo store",),
    cost=40,
)
