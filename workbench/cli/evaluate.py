"""``workbench evaluate``: a dictionary measured inside its model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import (
    DEFAULT_WORKSPACE,
    TEXTS,
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
def evaluate(
    dictionary: Annotated[str, typer.Argument(help="Id of a dictionary of the workspace, or the path of a saved one.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    sequences: Annotated[int, typer.Option(help="Held-out sequences.", min=1)] = 64,
    ctx: Annotated[
        int | None, typer.Option(help="Tokens per sequence, for longer contexts than the store's.", min=3)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Another model to splice into, for example a fine-tuned one.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Another snapshot of the model.")] = None,
    corpus: Annotated[str | None, typer.Option(help=f"Text to evaluate on: {TEXTS}")] = None,
    probing: Annotated[
        bool, typer.Option("--probing", help="Also k-sparse probing and absorption on labels read off the tokens.")
    ] = False,
    hook: Annotated[str | None, typer.Option(help="Hook name, where the dictionary does not name it.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of resampling and of freshly cut text.")] = 0,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Measure a dictionary: L0, explained variance, CE recovered, ΔLM loss, KL, dead and dense latents, each with n and
    interval.

    Held-out sequences of the dictionary's store are used, with the dictionary spliced into the model.

    Example: `workbench evaluate mini-pythia.L1R-8x`, or `workbench evaluate mini-pythia.L1R-8x --ctx 512 --probing`
    """
    from sae.files import read_json
    from workbench.verbs.measuring import evaluate as run

    item = run(
        workspace,
        dictionary,
        sequences=sequences,
        ctx=ctx,
        model=model,
        revision=revision,
        corpus=corpus,
        probing=probing,
        hook=hook,
        seed=seed,
        replace=replace,
        run=terminal_run(),
    )
    document = read_json(item.path / "metrics.json")
    for name, e in document["metrics"].items():
        interval = "" if e["low"] is None else f"  [{e['low']:.4f}, {e['high']:.4f}]"
        value = "not defined" if e["value"] is None else f"{e['value']:.4f}"
        say(f"{name:>20}  {value}{interval}  n = {e['n']:,} {e['unit']}")
    say(f"{item.path} (version {item.version})")
    return result_of(item) | document | {"metadata": item.manifest.metadata}
