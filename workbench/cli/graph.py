"""``workbench graph``: attribution graph of a prompt."""

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
def graph(
    prompt: Annotated[str, typer.Argument(help="A text; the graph explains the tokens that may follow it.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model whose residual-stream dictionaries are used.")
    ] = "mini-pythia",
    revision: Annotated[str | None, typer.Option(help="Snapshot of the model, such as step512.")] = None,
    site: Annotated[
        str, typer.Option(help="R: between residual streams; TC: through the transcoders of the MLPs.")
    ] = "R",
    dictionary: Annotated[
        list[str] | None,
        typer.Option(
            "--dictionary", "-d", help="Id of a dictionary, instead of --site; repeat for each layer, one kind."
        ),
    ] = None,
    node_share: Annotated[float, typer.Option(help="Share of influence the kept nodes hold.", min=0.01, max=1.0)] = 0.8,
    edge_share: Annotated[
        float, typer.Option(help="Share of influence the kept edges hold.", min=0.01, max=1.0)
    ] = 0.98,
    freeze: Annotated[
        bool,
        typer.Option("--freeze/--no-freeze", help="Hold attention patterns, norms and gates at this prompt's values."),
    ] = True,
    max_tokens: Annotated[int, typer.Option(help="Longest prompt.", min=2, max=1024)] = 64,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Trace which latents of each layer make which latents of the next, and which make the next token.

    Works for Transformers and Mambas; reconstruction errors are nodes of their own. With `--site TC` edges run through
    transcoders, exactly linear between layers (Transformers). Writes `graphs/<id>/graph.json` in the schema
    Neuronpedia publishes, and `edges.parquet`.

    Example: `workbench graph "def __init__(self" --model mini-mamba`
    """
    from workbench.verbs.analysing import graph as run

    item = run(
        workspace,
        prompt,
        model=model,
        revision=revision,
        site=site,
        dictionary=dictionary or [],
        node_share=node_share,
        edge_share=edge_share,
        freeze=freeze,
        max_tokens=max_tokens,
        replace=replace,
        run=terminal_run(),
    )
    n = item.manifest.numbers
    say(
        f"{item.path / 'graph.json'}: {n['nodes']:,} of {n['nodes_before']:,} nodes ({n['node_influence_kept']:.0%} of"
        f" influence), {n['edges']:,} of {n['edges_before']:,} edges; targets hold {n['logit_probability_covered']:.0%}"
        " of the next token's probability"
    )
    return result_of(item) | n
