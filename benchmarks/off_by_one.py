"""Where the off-by-one motif comes from: every recurrent layer's write profile with the short convolutions present, cut
to the position itself, and spread out, on the task of induction.

    python -m benchmarks.off_by_one [MODEL …] [--prompts 64] [--length 24] [--quick]

One Markdown row per model, layer and convolution. MODEL is a bundled name, a folder or a model of a workspace (trained
without some taps, say); all bundled models with recurrent layers by default.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from workbench.analysis.circuits.convolution import SPACING, convolution
from workbench.analysis.circuits.effects import locate_peak
from workbench.analysis.circuits.layers import state_layers
from workbench.analysis.circuits.off_by_one import write_profile
from workbench.analysis.circuits.paths import FrozenPaths
from workbench.analysis.circuits.table import OFFSETS, label_of
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.circuits.tasks import PromptSet, make_prompts, read_task
from workbench.models import bundled, load_model
from workbench.stats import wilson

HEAD = (
    "| model | layer | kind | convolution | right answers | logit difference | peak at | effect (95 %) | share"
    " | of |ΔLD| at +0, +1, +2 |\n|---|---|---|---|---|---|---|---|---|---|"
)


def rows(name: str, model: Any, prompts: PromptSet, how: str) -> list[str]:
    """The table's rows of one model under one convolution."""
    layers = state_layers(model)
    labels = [label_of(prompts.focus, o) for o in OFFSETS if (prompts.position(label_of(prompts.focus, o)) >= 0).all()]
    offsets = [o for o in OFFSETS if label_of(prompts.focus, o) in labels]
    with convolution(model, how):
        tail = Tail(model, prompts.clean)
        profile = write_profile(model, prompts, FrozenPaths(model, tail), labels, metrics=("logit_diff",))["logit_diff"]
    right = wilson(int((tail.logits.argmax(-1).numpy() == prompts.answer).sum()), len(prompts), "prompts")
    at = np.arange(len(prompts))
    margin = (tail.logits[at, prompts.answer] - tail.logits[at, prompts.wrong]).mean()
    total, out = np.abs(profile.mean(0)).sum(), []
    for i, layer in enumerate(layers):
        peak = locate_peak(profile[:, i])
        sizes = np.abs(profile[:, i].mean(0))
        near = ", ".join(f"{sizes[offsets.index(o)] / max(sizes.sum(), 1e-30):.2f}" for o in (0, 1, 2))
        effect = f"{peak.effect.value:.2f} ({peak.effect.low:.2f} to {peak.effect.high:.2f})"
        out.append(
            f"| {name} | {layer.index} | {layer.kind} | {how} | {right.value:.2f} | {margin:.2f} |"
            f" {offsets[peak.index[0]]:+d} | {effect} | {sizes.sum() / max(total, 1e-30):.2f} | {near} |"
        )
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="one model, eight prompts: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.models, args.prompts = args.models or ["mini-mamba"], 8
    print(HEAD)
    for name in args.models or bundled():
        model = load_model(name)
        if not state_layers(model):
            continue
        prompts = make_prompts(
            read_task("induction"),
            args.prompts,
            vocab_size=model.cfg.d_vocab,
            tokenizer=model.tokenizer,
            length=args.length,
        )
        for how in SPACING:
            print("\n".join(rows(name, model, prompts, how)), flush=True)


if __name__ == "__main__":
    main()
