"""Dictionaries trained on short contexts hold up on longer ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from workbench.claims.base import Claim, Finding, Measured, Rule
from workbench.claims.lab import SITE, SOURCE, Lab
from workbench.claims.recipe import plain

if TYPE_CHECKING:
    from workbench.analysis.evaluation.evaluate import Evaluation

DICTIONARY = "mini-pythia.L1R-8x"
SHORT = 16  # positions the control's dictionary is trained on


def measure(lab: Lab) -> Finding:
    """Loss a dictionary adds at positions beyond its training minus inside, in nats; control: one trained on the first
    positions alone, which has further to go.
    """
    from workbench.analysis.evaluation.evaluate import evaluate_in_model
    from workbench.analysis.evaluation.run import EvaluationRequest, heldout_tokens
    from workbench.dictionaries.reference import find_dictionary
    from workbench.models import load_model

    lab.demo()
    planned = find_dictionary(lab.workspace, DICTIONARY)
    model = load_model(planned.model_name)
    request = EvaluationRequest(sequences=32 if lab.quick else 96, ctx=256)
    tokens, _, _ = heldout_tokens(lab.workspace, planned, request, model)

    def losses(dictionary: Any) -> tuple[np.ndarray, np.ndarray]:
        return _added_loss(evaluate_in_model(model, dictionary, planned.hook, tokens, hook_out=planned.hook_out))

    inside, beyond = losses(planned.load())
    short_inside, short_beyond = losses(_of_first_positions(lab))
    scale = float(inside.mean())
    table = pd.DataFrame(
        {"sequence": np.arange(len(tokens)), "inside": inside, "beyond": beyond, "short": short_beyond - short_inside}
    )
    note = (
        f"ΔLM loss {scale:.4f} inside the trained length, {beyond.mean():.4f} beyond; of the dictionary of positions"
        f" 1-{SHORT}: {short_inside.mean():.4f} and {short_beyond.mean():.4f}"
    )
    effect = Measured.of((beyond - inside) / scale, unit="of the loss inside")
    return Finding(effect, Measured.of((short_beyond - inside) / scale, unit="of the loss inside"), table, note)


def _of_first_positions(lab: Lab) -> Any:
    """A dictionary of the same site, size and k, trained on rows of the first positions alone."""
    from sae import TopKConfig, Trainer

    store = lab.store()
    held = set(store.heldout)
    _, seq, pos = store.tokens(np.arange(len(store)))
    rows = np.flatnonzero((pos <= SHORT) & ~np.isin(seq, list(held)))
    x = store.read(SITE, rows, SOURCE)
    trainer = Trainer(TopKConfig(d_in=x.shape[1], d_sae=1024, k=16, seed=0, **plain(1024)), total_steps=lab.steps)
    g = torch.Generator().manual_seed(0)
    for _ in range(lab.steps):
        trainer.step(x[torch.randint(len(x), (1024,), generator=g)])
    return trainer.dictionary()


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
    statement="Dictionaries trained at one context length work at twice that length with little extra loss.",
    paper_number="+12 % reconstruction loss at eight times the length",
    experiment=(
        "Trained at 128 tokens, spliced at 256: loss added beyond position 128 minus before it, over the latter."
    ),
    control=f"The loss beyond of a dictionary trained on positions 1-{SHORT} alone, against the same loss inside.",
    rule=Rule("at most", 0.5, "outside"),
    unit="held-out sequence",
    would_change="More than half as much again lost beyond the trained length.",
    measure=measure,
    needs=("demo dictionaries",),
    cost=5,
)
