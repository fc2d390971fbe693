"""Dictionaries trained on short contexts hold up on longer ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured
from workbench.claims.lab import Lab

DICTIONARY = "mini-pythia.L1R-8x"


def measure(lab: Lab) -> Finding:
    """Loss added by the dictionary at positions beyond training minus inside, as a share of the latter; control: random directions."""
    from workbench.analysis.evaluate import evaluate_in_model
    from workbench.analysis.evaluate_run import Request, heldout_tokens
    from workbench.analysis.subject import find_subject
    from workbench.models import load_model

    lab.store()
    subject = find_subject(lab.workspace, DICTIONARY)
    model = load_model(subject.model_name)
    tokens, _ = heldout_tokens(lab.workspace, subject, Request(sequences=32 if lab.quick else 96, ctx=256), model)
    dictionary = subject.load()
    effect, table = _excess(evaluate_in_model(model, dictionary, subject.hook, tokens, hook_out=subject.hook_out))
    shuffled = subject.load()
    shuffled.enc_FD.copy_(shuffled.enc_FD.flip(1))
    shuffled.dec_FD.copy_(shuffled.dec_FD.flip(1))
    _, broken = _excess(evaluate_in_model(model, shuffled, subject.hook, tokens, hook_out=subject.hook_out))
    inside = float(table["delta"].iloc[: len(table) // 2].mean())
    control = Measured(float(broken["delta"].mean()) / inside, None, None, len(tokens), "times the loss inside")
    return Finding(effect, control, table, f"ΔLM loss {inside:.4f} inside the trained length")


def _excess(evaluation: object) -> tuple[Measured, pd.DataFrame]:
    """(extra loss of the second half of positions relative to the first, the table by position band)."""
    bands = evaluation.bands.copy()  # type: ignore[attr-defined]
    delta = next(c for c in bands.columns if "delta" in c)
    bands = bands.rename(columns={delta: "delta"})
    half = len(bands) // 2
    inside, beyond = bands["delta"].iloc[:half], bands["delta"].iloc[half:]
    ratio = float(beyond.mean() / inside.mean() - 1)
    spread = (
        np.sqrt(beyond.var(ddof=1) / len(beyond) + inside.var(ddof=1) / len(inside)) / abs(float(inside.mean())) if half > 1 else np.nan
    )
    return Measured(ratio, ratio - 1.96 * spread, ratio + 1.96 * spread, len(bands), "relative to inside"), bands


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
)
