"""Train the model again without one skill: do exactly the latents vanish that the skill is attributed to?

The skill is copying: a third run leaves out the windows in which anything comes again. Latents of the bundled
Transformer's snapshot that copies are attributed to copying by what taking them out would add to the loss on repeated
chunks, to first order, and then looked for in a dictionary of the run without the skill. What any other run would lose
of them too is measured in a run of the same initialisation that kept the skill and saw its batches in another order.
Similarity is given the token and above tokens exchanged among their like, so that what is left is more than reading
one word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from workbench.analysis.evolution.attribution import matched_by_frequency
from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.copying import SOLVED, copying_prompts
from workbench.claims.lab import SOURCE, Lab
from workbench.claims.small_dictionaries import LATENTS, K, codes_of, match_with_null, rows_at, train_small

REVISION, SITE = "step1664", "L2R"  # copies, and the last layer, where its induction heads write
WITHOUT, AGAIN, ELSE = "mini-pythia-nocopy", "mini-pythia-r2", "mini-pythia-r1"
TOP = 32  # latents that a skill is attributed to
LEAST = 0.05  # similarity above the null that latents must have in the run with the skill, or nothing can be lost
VANISHED = 0.5  # of its similarity above the null, for a latent to count as gone


def gain(model: Any, hook: str, dictionary: Any, windows: np.ndarray, scored: slice) -> np.ndarray:
    """[F] what taking each latent out would add to the loss, to first order: -sum over positions of f_i W_i . dL/dx.

    Args:
        windows: int [n, ctx] tokens, the first of each BOS, which has no code. scored: positions of the next-token
            losses [n, ctx - 1] that count.
    """
    total = np.zeros(dictionary.d_sae)
    for part in torch.as_tensor(windows).long().split(32):
        kept: list[torch.Tensor] = []

        def keep(value: torch.Tensor, hook: Any, kept: list[torch.Tensor] = kept) -> torch.Tensor:
            kept.append(value.detach().requires_grad_(True))
            return kept[0]

        with torch.enable_grad():
            logits = model.run_with_hooks(part, return_type="logits", fwd_hooks=[(hook, keep)])
            lost = torch.nn.functional.cross_entropy(
                logits[:, :-1].transpose(1, 2).float(), part[:, 1:], reduction="none"
            )[:, scored]
            lost.sum().backward()
        grad = kept[0].grad
        assert grad is not None  # the loss depends on the residual stream
        f = dictionary.encode(kept[0].detach()[:, 1:].flatten(0, 1)).detach()
        total -= (f * (grad[:, 1:].flatten(0, 1) @ dictionary.W_dec.detach().T)).sum(0).double().numpy()
    return total


def lost(above_with: np.ndarray, above_without: np.ndarray) -> float:
    """Share of a group's similarity above the null that the run without the skill does not have."""
    return float(1 - above_without.mean() / above_with.mean())


def told(score: np.ndarray, gone: np.ndarray) -> float:
    """Area under the curve with which a score tells latents that are gone from those that stay; NaN without either."""
    if not 0 < gone.sum() < len(gone):
        return float("nan")
    from scipy.stats import rankdata

    return float(
        (rankdata(score)[gone].sum() - gone.sum() * (gone.sum() + 1) / 2) / (gone.sum() * (len(gone) - gone.sum()))
    )


def judged(above: dict[str, np.ndarray], copying: np.ndarray, text: np.ndarray, often: np.ndarray, seed: int) -> dict:
    """One dictionary's numbers, from what each of N latents has above the null in the runs ``again`` and ``without``.

    Args:
        copying, text: [N] gain by which latents are attributed to copying and to plain text. often: [N] firings.
    """
    rng, everyone = np.random.default_rng(seed), np.arange(len(copying))
    out: dict[str, Any] = {"latents": len(copying)}
    by_copying = np.argsort(-copying, kind="stable")
    for name, score in (("copying", copying), ("text", text)):
        top = np.argsort(-score, kind="stable")[:TOP]
        pool = np.setdiff1d(everyone, by_copying[: 2 * TOP])  # nothing that copying may need counts as another latent
        others = matched_by_frequency(top, often, pool, rng)
        for group, rows in ((name, top), (f"{name}, others", others)):
            out[f"with: {group}"] = float(above["again"][rows].mean())
            out[f"lost: {group}"] = lost(above["again"][rows], above["without"][rows])
        out[name] = out[f"lost: {name}"] - out[f"lost: {name}, others"]
    there = above["again"] >= 2 * LEAST  # what has no counterpart even with the skill cannot lose it
    gone = above["without"][there] < VANISHED * above["again"][there]
    out["told"] = told(copying[there], gone)
    out["gone"] = float(gone.mean()) if len(gone) else float("nan")
    return out


def _above(a: sp.csr_array, b: sp.csr_array, cells: Any, rng: np.random.Generator) -> np.ndarray:
    """[F_a] each latent's largest correlation with b given the token minus that with b's tokens exchanged among their
    like; NaN for latents that fire too rarely.
    """
    match, null = match_with_null(a, b, cells, rng)
    return np.asarray(match.r - null.r)


def measured(lab: Lab) -> pd.DataFrame:
    """One row per seed of the dictionaries; see :func:`judged`."""
    from workbench.analysis.comparison.given_token import TokenCells
    from workbench.corpus import CorpusConfig, bos_id, frequencies, plan_tokens, text_stream
    from workbench.models.criteria import copy_prompts
    from workbench.models.load import load_model, load_tokenizer
    from workbench.models.sites import hooks_of

    tokenizer, hook = load_tokenizer(SOURCE), hooks_of(SITE)[1]
    n_train, n_test, n_copies, steps = (320, 200, 32, 150) if lab.quick else (1000, 500, 96, 400)
    train = torch.as_tensor(plan_tokens(CorpusConfig(), tokenizer, n_seq=n_train, ctx=128).tokens).long()
    held = plan_tokens(CorpusConfig(split="heldout"), tokenizer, n_seq=n_test, ctx=128)
    test = torch.as_tensor(held.tokens).long()
    ids = test[:, 1:].numpy()
    cells = TokenCells.of(ids.reshape(-1), np.repeat(np.arange(len(ids)), ids.shape[1]))
    probabilities = frequencies(text_stream(CorpusConfig(), tokenizer), len(tokenizer))
    copies = copy_prompts(probabilities, bos_id(tokenizer), n_copies, np.random.default_rng(5))[0][0]
    half = slice(copies.shape[1] // 2, None)  # losses of the second copy
    text = held.tokens[held.kinds == 0][:n_copies]
    models = {
        "own": (SOURCE, REVISION),
        "again": (lab.variant(AGAIN), None),
        "else": (lab.variant(ELSE), None),
        "without": (lab.variant(WITHOUT), None),
    }
    codes: dict[tuple[str, int], sp.csr_array] = {}
    gains: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for name, (model, revision) in models.items():
        bridge = load_model(model, revision=revision)
        ours, theirs = rows_at(bridge, hook, train), rows_at(bridge, hook, test)
        for seed in lab.each_seed():
            dictionary = train_small(ours, seed, steps)
            codes[name, seed] = sp.csr_array(codes_of(dictionary, theirs)[cells.rows])
            if name == "own":
                gains[seed] = (
                    gain(bridge, hook, dictionary, copies, half),
                    gain(bridge, hook, dictionary, text, slice(None)),
                )
    rows = []
    for seed in lab.each_seed():
        rng = np.random.default_rng(seed)
        above = {n: _above(codes["own", seed], codes[n, seed], cells, rng) for n in models if n != "own"}
        ok = np.flatnonzero(np.isfinite(np.stack(list(above.values()))).all(0))
        often = np.asarray((codes["own", seed] > 0).sum(0)).ravel()[ok].astype(float)
        copying, plain = (g[ok] for g in gains[seed])
        row = judged({n: x[ok] for n, x in above.items()}, copying, plain, often, seed)
        other = judged({"again": above["else"][ok], "without": above["without"][ok]}, copying, plain, often, seed)
        rows.append({"seed": seed, **row, "against another initialisation": other["copying"]})
    return pd.DataFrame(rows)


def copies(lab: Lab, model: str, revision: str | None) -> float:
    """Accuracy of copying of two alternatives."""
    from workbench.analysis.evolution.attribution import accuracies
    from workbench.analysis.evolution.snapshots import Snapshots, Source
    from workbench.models.load import load_tokenizer
    from workbench.models.sites import hooks_of

    prompts = copying_prompts(lab, load_tokenizer(SOURCE))
    found = Snapshots([Source(model, model, revision, hooks_of(SITE)[1], None)])
    return float(accuracies(found, prompts)[0])


def measure(lab: Lab) -> Finding:
    """How much more of their counterpart latents of copying lose than latents as frequent; control: the same for
    latents of plain text.
    """
    skill = {m: copies(lab, m, r) for m, r in ((SOURCE, REVISION), (lab.variant(AGAIN), None))}
    skill[WITHOUT] = copies(lab, lab.variant(WITHOUT), None)
    said = ", ".join(f"{m} {a:.2f}" for m, a in skill.items())
    if skill[WITHOUT] >= SOLVED or min(a for m, a in skill.items() if m != WITHOUT) < SOLVED:
        return untestable(f"the runs differ otherwise than in copying (accuracy of two alternatives: {said})")
    table = lab.once("without a skill", lambda: measured(lab))
    there = float(table["with: copying"].min())
    groups = ("lost: copying", "lost: copying, others", "lost: text", "told", "gone", "against another initialisation")
    more = {g: Measured.of(table[g]) for g in groups}
    note = (
        f"accuracy of copying: {said}; latents of copying lose {more['lost: copying'].value:.0%} of their similarity,"
        f" others as frequent {more['lost: copying, others'].value:.0%}, latents of plain text"
        f" {more['lost: text'].value:.0%}; {more['gone'].value:.0%} of all latents with a counterpart lose more than"
        f" half, told by attribution with an area of {more['told'].value:.2f}"
    )
    few = f"latents of copying have {there:.3f} above the null in the run with the skill: nothing to lose"
    unit = "of the similarity lost"
    return Finding(
        Measured.of(table["copying"], unit=unit),
        Measured.of(table["text"], unit=unit),
        table,
        note,
        open="" if there >= LEAST else few,
        more=more,
    )


CLAIM = Claim(
    id="evolution.latents-vanish-without-the-skill",
    paper="evolution",
    section="open: retrained without one skill, do exactly the attributed latents vanish?",
    statement=(
        "Trained again without windows to copy from, the model lacks the latents that copying is attributed to, and"
        " keeps others: they lose at least half of their similarity more than latents as frequent."
    ),
    paper_number="not reported",
    experiment=(
        f"Top-K dictionaries ({LATENTS} latents, k = {K}) at the last layer of the snapshot {REVISION}, of a run"
        f" without windows to copy from and of one that kept them (same initialisation, other batches). The {TOP}"
        " latents whose removal costs most on repeated chunks, to first order; share of their largest correlation given"
        " the token, above tokens exchanged among their like, that the run without the skill lacks of what the other"
        " run has; minus the same for latents of equal frequency."
    ),
    control=f"The same for the {TOP} latents whose removal costs most on plain text.",
    rule=Rule("above", 0.5, "beaten"),
    unit="seed of the dictionaries; one training run with and one without the skill",
    would_change="Latents of copying found again in the run without it, or others lost as much.",
    measure=measure,
    needs=tuple(f"variant {m}" for m in (AGAIN, ELSE, WITHOUT)),
    cost=90,
)
