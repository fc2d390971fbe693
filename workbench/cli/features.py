"""``workbench features``: latent records of a dictionary."""

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
def features(
    dictionary: Annotated[str, typer.Argument(help="Id of a dictionary of the workspace, or the path of a saved one.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    tokens: Annotated[int, typer.Option(help="Rows of the store to use, spread evenly; 0 = all.", min=0)] = 100_000,
    contexts: Annotated[int, typer.Option(help="Contexts kept per group.", min=1, max=200)] = 20,
    window: Annotated[int, typer.Option(help="Tokens of a context.", min=8, max=1024)] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the randomly chosen contexts.")] = 0,
    store: Annotated[str | None, typer.Option(help="Store to read instead of the one the dictionary names.")] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help=f"Run the model on text instead of reading a store: {TEXTS}"),
    ] = None,
    ctx: Annotated[int, typer.Option(help="Tokens per sequence with --corpus.", min=3)] = 128,
    model: Annotated[str | None, typer.Option(help="Model, where the dictionary does not name it.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook name, where the dictionary does not name it.")] = None,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Compute a dictionary's latent records: contexts, histograms, densities, logit effects, neighbours.

    Rows come from the store the dictionary was trained on. One that was imported has none: give --corpus, or harvest
    its hook.

    Example: `workbench features mini-pythia.L1R-8x`, or `workbench features theirs --corpus prose --model mini-pythia`
    """
    from workbench.verbs.measuring import features as run

    item = run(
        workspace,
        dictionary,
        tokens=tokens,
        contexts=contexts,
        window=window,
        seed=seed,
        store=store,
        corpus=corpus,
        ctx=ctx,
        model=model,
        hook=hook,
        replace=replace,
        run=terminal_run(),
    )
    manifest = item.manifest
    numbers = manifest.numbers
    say(
        f"{item.path}: {numbers['n_latents']:,} latents on {numbers['n_tokens']:,} tokens; L0 {numbers['l0']:.2f},"
        f" never fired {numbers['dead_share']:.1%}, above 10 % density {numbers['ultra_dense_share']:.1%} (version"
        f" {item.version})"
    )
    return result_of(item) | {"numbers": numbers, "metadata": manifest.metadata}
