"""``workbench circuits``: patching, induction and the off-by-one motif of one model on one task."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import (
    DEFAULT_WORKSPACE,
    DebugOption,
    JsonOption,
    ReplaceOption,
    WorkspaceOption,
    result_of,
    say,
    terminal_run,
    verb,
)


@verb
def circuits(
    model: Annotated[
        str, typer.Argument(help="A bundled model (mini-pythia, mini-mamba), a folder, or a Hugging Face id.")
    ],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    revision: Annotated[
        str | None, typer.Option(help="Snapshot of the model, for example step0; the last one by default.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="A bundled task (induction, induction-long, agreement, ioi) or a TOML file.")
    ] = "induction",
    prompts: Annotated[int, typer.Option(help="Prompts.", min=8, max=4096)] = 64,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens per prompt of induction tasks; the task's own by default.", min=8, max=1024),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    control: Annotated[
        str,
        typer.Option(help="Snapshot to compare the largest effect with, where the model has it; none = no comparison."),
    ] = "step0",
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Which parts of a model carry an answer from where the prompt holds it to where it is said.

    One part after another takes the activations of a prompt with another answer (path patching), and what that changes
    of the answer's logit is the part's effect: through all later layers (total) or straight to the output (direct).
    Transformers: which heads look back, how far, and which of them copy (induction). Mambas: at which token a layer
    writes into its running state, and through which tap of its convolution. Every effect has its n and a 95 % interval.

    Example: `workbench circuits mini-mamba`, or `workbench circuits mini-pythia --task ioi --revision step512`
    """
    from workbench.verbs.analysing import circuits as run

    item = run(
        workspace,
        model,
        revision=revision,
        task=task,
        prompts=prompts,
        length=length,
        seed=seed,
        control=control,
        replace=replace,
        run=terminal_run(),
    )
    manifest = item.manifest
    for line in summary(manifest.numbers, manifest.metadata):
        say(line)
    say(f"{item.path} (version {item.version})")
    return result_of(item) | {"numbers": manifest.numbers, "metadata": manifest.metadata}


def _positions(half_life: dict[str, Any]) -> str:
    """A layer's median half-life; most writes of some layers outlive their text."""
    return "outlives the text" if half_life["median"] is None else f"{half_life['median']:.0f}"


def summary(numbers: dict[str, Any], about: dict[str, Any]) -> list[str]:
    """The headline numbers as sentences."""
    lines = [
        f"{about['model']} on {about['task']}: right on {_percent(numbers['accuracy'])} of {about['n_prompts']}"
        f" prompts, logit difference {_value(numbers['clean_logit_diff'])}."
    ]
    lines += [numbers[role]["sentence"] for role in ("induction_heads", "previous_token_heads") if role in numbers]
    if "state_layers" in numbers:
        layers = numbers["state_layers"]
        named = ", ".join(f"L{l} ({share:.0%})" for l, share in zip(layers["layers"], layers["share"], strict=True))
        lines.append(f"Layers whose last state carries the answer: {named or 'none'}.")
    for key, what in (("write_peak", "write"), ("read_peak", "read")):
        if key in numbers:
            peak = numbers[key]
            head = f"H{peak['unit']}" if "unit" in peak else ""
            lines.append(
                f"Largest {what}: L{peak['layer']}{head} at {peak['position']}, effect {_value(peak['effect'])}, "
                f"share of all {_percent(peak['share'])}, the same cell in {peak['same']:.0%} of resamples."
            )
    if lives := numbers.get("half_lives"):
        said = ", ".join(f"L{l} {_positions(n)}" for l, n in lives.items())
        lines.append(f"Half of a write is gone after (median, in positions): {said}.")
    if "control" in numbers:
        control = numbers["control"]
        verdict = "more than" if control["exceeds"] else "not clearly more than"
        lines.append(f"That is {verdict} anything at {control['revision']}: difference {_value(control['excess'])}.")
    if "conv_peak" in numbers:
        tap = numbers["conv_peak"]
        source = "" if tap["source_offset"] is None else f", reading position {about['focus']}{tap['source_offset']:+d}"
        lines.append(f"Convolution: tap {tap['tap']} back of L{tap['layer']}{source}, share {_percent(tap['share'])}.")
    return lines


def _value(e: dict[str, Any]) -> str:
    return f"{e['value']:.2f}" + (f" [{e['low']:.2f}, {e['high']:.2f}]" if e.get("low") is not None else "")


def _percent(e: dict[str, Any]) -> str:
    return (
        "not computed"
        if e["value"] is None
        else f"{e['value']:.0%}" + (f" [{e['low']:.0%}, {e['high']:.0%}]" if e.get("low") is not None else "")
    )
