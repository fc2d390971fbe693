"""``workbench features``: latent records of a dictionary."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, say, verb


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
        typer.Option(help="Run the model on text instead of reading a store: a file or folder, mini, or prose."),
    ] = None,
    ctx: Annotated[int, typer.Option(help="Tokens per sequence with --corpus.", min=3)] = 128,
    model: Annotated[str | None, typer.Option(help="Model, where the dictionary does not name it.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook name, where the dictionary does not name it.")] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Compute a dictionary's latent records: contexts, histograms, densities, logit effects, neighbours.

    Rows come from the store the dictionary was trained on. One that was imported has none: give --corpus, or harvest
    its hook.

    Example: `workbench features mini-pythia.L1R-8x`, or `workbench features theirs --corpus prose --model mini-pythia`
    """
    from tqdm import tqdm

    from workbench.analysis.latents.records_run import make_records
    from workbench.dictionaries.reference import find_dictionary
    from workbench.workspace import Workspace

    ws = Workspace(workspace)
    planned = find_dictionary(ws, dictionary, store=store, model_name=model, hook_name=hook)
    bar = tqdm(
        desc=f"records of {planned.id}",
        unit="rows",
        unit_scale=True,
        file=sys.stderr,
        total=tokens or None,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )
    with bar:
        item = make_records(
            ws,
            planned,
            n_tokens=tokens or None,
            k=contexts,
            window=window,
            seed=seed,
            corpus=corpus,
            ctx=ctx,
            command=(
                f"workbench features {dictionary} --tokens {tokens} --contexts {contexts} --window {window} --seed"
                f" {seed}"
            )
            + (f" --corpus {corpus} --ctx {ctx}" if corpus else ""),
            progress=bar.update,
        )
    manifest = item.manifest
    numbers = manifest.numbers
    say(
        f"{item.path}: {numbers['n_latents']:,} latents on {numbers['n_tokens']:,} tokens; L0 {numbers['l0']:.2f},"
        f" never fired {numbers['dead_share']:.1%}, above 10 % density {numbers['ultra_dense_share']:.1%} (version"
        f" {item.version})"
    )
    return {
        "id": item.id,
        "path": str(item.path),
        "version": item.version,
        "numbers": numbers,
        "metadata": manifest.metadata,
    }
