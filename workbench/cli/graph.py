"""``workbench graph``: attribution graph of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from workbench.workspace import Item


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
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            help="Also take every edge apart: by attention head, or by channel of a Mamba's state; and the score of"
            " each node's strongest head by pairs of query and key latents. The parts add up exactly.",
        ),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Then change latents and run the model: NODE=0 (ablate), NODE=1.5 (set), NODE=x2 (scale), A,B=0"
            " (several), @NAME=0 (a group made on the page Graph). Repeat to change more together. Nodes are called as"
            " in graph.json: LAYER_LATENT_POSITION.",
        ),
    ] = None,
    swap: Annotated[
        list[str] | None,
        typer.Option(
            help="Then let two latents exchange their activations, A=B, or as many one by one, A,B=C,D; may be"
            " repeated."
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Then ablate every latent with an edge into a target, and hold the edges against the model."
        ),
    ] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Trace which latents of each layer make which latents of the next, and which make the next token.

    Works for Transformers and Mambas; reconstruction errors are nodes of their own. With `--site TC` edges run through
    transcoders, exactly linear between layers (Transformers). Writes `graphs/<id>/graph.json` in the schema
    Neuronpedia publishes, and `edges.parquet`. With `--set`, `--swap` or `--check` the model is then run with latents
    held at other values, and what it does stands beside what the graph predicts. With `--split` every edge is taken
    apart by heads or channels (`splits`, `loadings`, `reads`, `scores` as Parquet beside the graph).

    Example: `workbench graph "def __init__(self" --model mini-mamba`

    Example: `workbench graph "def __init__(self" --set 3_17_5=0 --set 2_40_3=x2 --check`
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
        split=split,
        replace=replace,
        run=terminal_run(),
    )
    n = item.manifest.numbers
    say(
        f"{item.path / 'graph.json'}: {n['nodes']:,} of {n['nodes_before']:,} nodes ({n['node_influence_kept']:.0%} of"
        f" influence), {n['edges']:,} of {n['edges_before']:,} edges; targets hold {n['logit_probability_covered']:.0%}"
        " of the next token's probability"
    )
    if left := n.get("targets_unfollowed"):
        say(
            f"{left:,} of {n['targets']:,} latents have little influence and were not followed further back; every node"
            " of the pruned graph was"
        )
    if split:
        _say_split(item)
    done = result_of(item) | n
    return (
        done | _interventions(workspace, item.id, set_ or [], swap or [], check, max_tokens)
        if set_ or swap or check
        else done
    )


def _say_split(item: Item) -> None:
    """Which heads or channels carry most to the likeliest next token's node, or to the first node that has any."""
    import pandas as pd

    loadings = pd.read_parquet(item.path / "loadings.parquet")
    n = item.manifest.numbers
    say(f"edges add up from their heads or channels within {n['split_gap']:.1g} of the largest")
    units = loadings[~loadings["unit"].isin(["past", "others"])]
    by_unit = units.groupby(["layer", "unit"])["value"].agg(lambda v: float(v.abs().sum())).sort_values(ascending=False)
    for (layer, unit), value in by_unit.head(5).items():
        say(f"  L{layer}{unit}: {value:.3g} in all, over the kept nodes")


def _interventions(
    workspace: Path, id: str, sets: list[str], swaps: list[str], check: bool, max_tokens: int
) -> dict[str, Any]:
    """Run and tell what was asked for on top of a graph."""
    from dataclasses import asdict

    from workbench.verbs.analysing import intervene

    found = intervene(workspace, id, set=sets, swap=swaps, check=check, max_tokens=max_tokens)
    out: dict[str, Any] = {}
    if (made := found.intervention) is not None:
        held = "frozen" if found.frozen else "free"
        say(f"{', '.join(f'{k} = {v:.3g}' for k, v in made.changes.items())}; attention {held}; KL {made.kl:.3g} nats")
        for word, before, after in zip(found.words, made.before, made.after, strict=True):
            say(f"  {word!r:16} {before:7.2%} -> {after:7.2%}")
        for target, says, did in zip(made.targets, made.predicted, made.measured, strict=True):
            say(f"  target {target}: the graph predicts {says:+.3f}, the model does {did:+.3f}")
        out["intervention"] = asdict(made) | {"words": found.words}
    if (fit := found.agreement) is not None:
        say(f"edges into targets against ablations: r = {fit.r:.3f} [{fit.low:.3f}, {fit.high:.3f}], n = {fit.n}")
        out["agreement"] = {k: None if v != v else v for k, v in asdict(fit).items()}
        out["effects"] = [asdict(e) for e in found.effects]
    return out
