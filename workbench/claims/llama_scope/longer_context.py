"""Dictionaries trained on short contexts hold up on longer ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured
from workbench.claims.lab import Lab

if TYPE_CHECKING:
    from workbench.analysis.evaluation.evaluate import Evaluation

DICTIONARY = "mini-pythia.L1R-8x"


def measure(lab: Lab) -> Finding:
    """Loss added by the dictionary at positions beyond training minus inside, as a share of the latter; control: random
    directions.
    """
    from workbench.analysis.evaluation.evaluate import evaluate_in_model
    from workbench.analysis.evaluation.run import EvaluationRequest, heldout_tokens
    from workbench.dictionaries.reference import find_dictionary
    from workbench.models import load_model

    lab.demo()
    planned = find_dictionary(lab.workspace, DICTIONARY)
    model = load_model(planned.model_name)
    tokens, _ = heldout_tokens(
        lab.workspace, planned, EvaluationRequest(sequences=32 if lab.quick else 96, ctx=256), model
    )
    dictionary = planned.load()
    inside, beyond = _added_loss(evaluate_in_model(model, dictionary, planned.hook, tokens, hook_out=planned.hook_out))
    broken = planned.load()
    broken.enc_FD.copy_(broken.enc_FD.flip(1))
    broken.dec_FD.copy_(broken.dec_FD.flip(1))
    spoilt, _ = _added_loss(evaluate_in_model(model, broken, planned.hook, tokens, hook_out=planned.hook_out))
    draws = np.random.default_rng(0).integers(0, len(tokens), (2000, len(tokens)))
    ratios = beyond[draws].mean(1) / inside[draws].mean(1) - 1
    low, high = np.quantile(ratios, [0.025, 0.975])
    effect = Measured(
        float(beyond.mean() / inside.mean() - 1), float(low), float(high), len(tokens), "relative to inside"
    )
    control = Measured(float(spoilt.mean() / inside.mean()), None, None, len(tokens), "times the loss inside")
    table = pd.DataFrame({"sequence": np.arange(len(tokens)), "inside": inside, "beyond": beyond})
    return Finding(
        effect, control, table, f"ΔLM loss {inside.mean():.4f} inside the trained length, {beyond.mean():.4f} beyond"
    )


def _added_loss(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Loss added per token of each sequence: in the first half of its positions, and in the second."""
    sums = evaluation.sums.assign(added=evaluation.sums["ce_spliced"] - evaluation.sums["ce"])
    half = sums["band"] < (sums["band"].max() + 1) / 2
    inside, beyond = (part.groupby("sequence")[["added", "n"]].sum() for part in (sums[half], sums[~half]))
    return (inside["added"] / inside["n"]).to_numpy(), (beyond["added"] / beyond["n"]).to_numpy()


CLAIM = Claim(
    id="llama-scope.longer-context",
    paper="llama-scope",
    section="4.5, figure 5",
    statement="Dictionaries trained at one context length work at longer ones with little extra loss.",
    paper_number="+12 % reconstruction loss at eight times the length",
    experiment="Trained at 128 tokens, spliced at 256: loss added beyond position 128 relative to before it.",
    control="The same dictionary with its input axes reversed, which must be far worse.",
    criterion="At most 50 % more loss beyond the trained length; the control more than five times the loss inside.",
    measure=measure,
    holds=lambda f: f.effect.value <= 0.5 and f.control is not None and f.control.value > 5,
    needs=("demo dictionaries",),
    cost=6,
)
