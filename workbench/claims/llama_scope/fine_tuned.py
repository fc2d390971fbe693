"""Dictionaries of a base model work on its fine-tuned variant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab

if TYPE_CHECKING:
    from workbench.analysis.evaluation.evaluate import Evaluation

BASE, TUNED = "mini-pythia", "mini-pythia-prose"
EARLIER = "step2560"  # snapshot of the base model that stands for a change that must not go unseen
LAYERS = (0, 1)  # the paper excepts the last layer, which is in the note
ALL_LAYERS = (0, 1, 2)
CTX = 128


def added(evaluation: Evaluation) -> np.ndarray:
    """[sequences] loss in nats per token that a dictionary adds."""
    sums = evaluation.sums.groupby("sequence")[["ce", "ce_spliced", "n"]].sum()
    return ((sums["ce_spliced"] - sums["ce"]) / sums["n"]).to_numpy()


def measure(lab: Lab) -> Finding:
    """Loss added to the tuned model minus loss added to the base model, on text of the kind the model was tuned on;
    control: an earlier snapshot of the base model in place of the tuned one.
    """
    from workbench.analysis.evaluation.evaluate import evaluate_in_model
    from workbench.config import read_recipe
    from workbench.corpus import plan_tokens
    from workbench.dictionaries.reference import find_dictionary
    from workbench.models import load_model
    from workbench.models.load import bundled
    from workbench.models.pretrain import PretrainRecipe

    if TUNED not in bundled():
        return untestable(f"{TUNED} is not bundled")
    lab.demo()
    models = {"base": load_model(BASE), "tuned": load_model(TUNED), "earlier": load_model(BASE, revision=EARLIER)}
    corpus = read_recipe(PretrainRecipe, TUNED).corpus.model_copy(update={"split": "heldout"})
    tokens = plan_tokens(corpus, models["base"].tokenizer, n_seq=32 if lab.quick else 96, ctx=CTX).tokens
    rows: list[dict[str, Any]] = []
    lost: dict[str, list[np.ndarray]] = {name: [] for name in ("tuned", "earlier")}
    for layer in ALL_LAYERS:
        planned = find_dictionary(lab.workspace, f"{BASE}.L{layer}R-8x")
        dictionary = planned.load()
        loss = {name: added(evaluate_in_model(m, dictionary, planned.hook, tokens)) for name, m in models.items()}
        rows += [{"layer": layer, "model": name, "added": float(v.mean()), "n": len(v)} for name, v in loss.items()]
        if layer in LAYERS:
            for name, values in lost.items():
                values.append(loss[name] - loss["base"])
    table = pd.DataFrame(rows)
    by = table.pivot(index="layer", columns="model", values="added")
    note = "; ".join(f"layer {i}: {r.base:.3f} nats on the base, {r.tuned:.3f} on the tuned" for i, r in by.iterrows())
    effect, control = (
        Measured.of(np.mean(lost[name], axis=0), unit="nats more than on the base") for name in ("tuned", "earlier")
    )
    return Finding(effect, control, table, f"{note} (the last layer is not judged)")


CLAIM = Claim(
    id="llama-scope.fine-tuned",
    paper="llama-scope",
    section="4.5, figure 6",
    statement="Dictionaries trained on a base model transfer to its fine-tuned variant without notable degradation.",
    paper_number="no notable degradation except at the last layer",
    experiment=(
        "ΔLM loss of base dictionaries of all layers but the last, on the model continued on prose alone minus on the"
        " base model, held-out prose."
    ),
    control=f"The same for the base model's snapshot {EARLIER}: a model as different as an earlier stage of training.",
    rule=Rule("at most", 0.02, "outside"),
    unit="held-out sequence, mean over layers",
    would_change="More than 0.02 nats added on the tuned model beyond what the base model loses.",
    measure=measure,
    needs=("demo dictionaries",),
    cost=15,
)
