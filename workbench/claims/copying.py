"""Copying from the context, as claims about training ask for it: the prompts, and from when on it counts as solved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.claims.lab import Lab

if TYPE_CHECKING:
    from workbench.analysis.circuits.tasks import PromptSet

SOLVED = 0.8  # of two alternatives; as everywhere a task counts as solved


def copying_prompts(lab: Lab, tokenizer: Any) -> PromptSet:
    """Induction prompts of one draw, the same for every model and snapshot: 96, or 48 in a quick run."""
    from workbench.analysis.circuits.tasks import make_prompts, read_task

    n = 48 if lab.quick else 96
    return make_prompts(read_task("induction"), n, vocab_size=len(tokenizer), tokenizer=tokenizer, seed=2)
