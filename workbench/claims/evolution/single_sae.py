"""One crosscoder over all snapshots explains the last one about as well as an SAE trained on it alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import Lab

MARGIN = 0.03  # "a few points": also what the analysis of an evolution asks of its baseline


def _explained(lab: Lab, evolution: Any, seed: int, ks: tuple[int, ...]) -> list[float]:
    """Held-out EV of Top-K SAEs on the last snapshot: as many latents, rows and steps as the crosscoder, on the same
    text.
    """
    from sae import evaluate, train_many
    from sae.refitting import refit
    from workbench.analysis.evolution.baselines import alone_config
    from workbench.analysis.evolution.recipe import EvolveRecipe, resolve_sources
    from workbench.analysis.evolution.rows import LastBatches
    from workbench.analysis.evolution.snapshots import OnlineBatches, Snapshots
    from workbench.corpus import plan_tokens
    from workbench.models.load import load_tokenizer

    recipe = EvolveRecipe.model_validate(evolution.manifest.recipe)
    tokenizer, last = load_tokenizer(recipe.model), Snapshots(resolve_sources(recipe)[-1:])
    width = last.widths()[0]

    def tokens(split: str, n: int) -> np.ndarray:
        return lab.once(
            ("text", split, n),
            lambda: (
                plan_tokens(
                    recipe.corpus.model_copy(update={"split": split}), tokenizer, n_seq=n, ctx=recipe.ctx
                ).tokens
            ),
        )

    text = tokens("train", recipe.n_seq)
    batches = OnlineBatches(last, text, recipe.batch_size, seed=recipe.seed, group=max(64, recipe.batch_size // 32))
    configs = {str(k): alone_config(recipe.model_copy(update={"k": k, "seed": seed}), width) for k in ks}
    tail = LastBatches(batches, -(-recipe.refit // recipe.batch_size))
    made = train_many(configs, tail, total_steps=recipe.steps, progress=False)
    if recipe.refit:  # as the crosscoder's decoders were
        made = {name: refit(sae, tail.rows(recipe.steps)) for name, sae in made.items()}
    held = tokens("heldout", recipe.heldout_seqs)
    rows = OnlineBatches(last, held, 1, seed=0)
    parts = [rows.rows_of(np.arange(i, min(i + 32, len(held)))) for i in range(0, len(held), 32)]
    return [float(evaluate(made[str(k)], parts).ev) for k in ks]


def measure(lab: Lab) -> Finding:
    """EV of the SAE minus EV of the crosscoder at the last snapshot, same k, over seeds; control: the SAE with twice
    the k.
    """
    rows = []
    for seed in lab.each_seed():
        evolution = lab.evolution(seed)
        k, mine = int(evolution.manifest.recipe["k"]), float(evolution.phases["ev"].iloc[-1])
        alone, double = _explained(lab, evolution, seed, (k, 2 * k))
        rows.append(
            {
                "seed": seed,
                "ev_crosscoder": mine,
                "ev_sae": alone,
                "ev_sae_2k": double,
                "l0_crosscoder": evolution.manifest.numbers["l0"],
            }
        )
    table = pd.DataFrame(rows)
    note = (
        f"EV {table.ev_crosscoder.mean():.3f} of the crosscoder (L0 {table.l0_crosscoder.mean():.1f}),"
        f" {table.ev_sae.mean():.3f} of the SAE"
    )
    gap = Measured.of(table.ev_sae - table.ev_crosscoder, unit="EV")
    return Finding(gap, Measured.of(table.ev_sae_2k - table.ev_crosscoder, unit="EV"), table, note)


CLAIM = Claim(
    id="evolution.single-sae-gap",
    paper="evolution",
    section="4.1, figure 2",
    statement=(
        "A crosscoder over all snapshots explains the last one within a few points of an SAE trained on it alone."
    ),
    paper_number="frontier at least as good as a final-snapshot SAE",
    experiment=(
        "Top-K SAE on the last snapshot with as many latents, rows, steps and k as the crosscoder; held-out EV of the"
        " SAE minus the crosscoder's."
    ),
    control="An SAE with twice the latents per row, a real difference.",
    rule=Rule("at most", MARGIN, "outside"),
    unit="seed of the crosscoder and the SAE; one training run of the model",
    would_change=(
        "A crosscoder with magnitudes of its own per snapshot, or more latents, at equal L0 within three points."
    ),
    measure=measure,
    needs=("evolution",),
    cost=28,
)
