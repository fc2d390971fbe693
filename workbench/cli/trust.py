"""``workbench trust``: a card of evidence for every latent of a dictionary."""

from __future__ import annotations

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
    from workbench.results.trust import Trust


@verb
def trust(
    dictionary: Annotated[str, typer.Argument(help="Id of a dictionary of the workspace, or the path of a saved one.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    tokens: Annotated[int, typer.Option(help="Held-out tokens of its store, at most.", min=1000)] = 100_000,
    min_firings: Annotated[int, typer.Option(help="Latents that fire on fewer of them are not matched.", min=2)] = 20,
    train: Annotated[
        bool,
        typer.Option(
            help=(
                "Harvest and train what the cards are held against where the workspace has none: a second seed, another"
                " seed of the model, the untrained model, labels by rule. --no-train leaves those fields out."
            )
        ),
    ] = True,
    ablations: Annotated[
        int, typer.Option(help="Tokens on which each latent is ablated; 0 leaves its effect out.", min=0)
    ] = 32,
    seed: Annotated[int, typer.Option(help="Seed of shifts, samples and intervals.")] = 0,
    store: Annotated[str | None, typer.Option(help="Store to read instead of the one the dictionary names.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, where the dictionary does not name it.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook name, where the dictionary does not name it.")] = None,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Is this latent real? A card of evidence for each: every number with what it rests on and what chance gives.

    Found again in another seed of the dictionary, of the model, and in the untrained model (then it detects tokens);
    encoder against decoder; who fires in its place; what ablating it does to the loss, against its peers; its rule on
    held-out text and on near misses; the same contexts in both halves of the text. Dictionaries that are missing are
    trained at this one's own settings; interrupted, the same command goes on.

    Example: `workbench trust mini-pythia.L1R-8x`, or `workbench trust mini-pythia.L1R-8x --no-train --json`
    """
    from workbench.results.trust import Trust
    from workbench.verbs.trusting import trust as run

    item = run(
        workspace,
        dictionary,
        tokens=tokens,
        min_firings=min_firings,
        train=train,
        ablations=ablations,
        seed=seed,
        store=store,
        model=model,
        hook=hook,
        replace=replace,
        run=terminal_run(),
    )
    found = Trust.open(item.path)
    for line in summary(found):
        say(line)
    say(f"{item.path} (version {item.version})")
    about = {"numbers": found.manifest.numbers, "metadata": found.metadata}
    return result_of(item) | about | ({"latents": latents(found)} if json_output else {})


def summary(found: Trust) -> list[str]:
    """The headline numbers as sentences, and what was not computed with the reason."""
    n, about = found.manifest.numbers, found.metadata
    lines = [
        f"{found.id}: {n['n_judged']:,} of {n['n_latents']:,} latents fire at least {about['min_firings']} times on"
        f" {n['n_tokens']:,} held-out tokens."
    ]
    for role, words in (("seed", "another seed"), ("model_seed", "another seed of the model")):
        if share := n.get(f"{role}_found_share"):
            lines.append(f"Found again in {words}: {share['value']:.0%} of {share['n']:,} ({about['others'][role]}).")
    if share := n.get("untrained_found_share"):
        lines.append(f"Found in the untrained model, so token detectors: {share['value']:.0%} of {share['n']:,}.")
    if agreement := n.get("ablation_agreement"):
        r = "not defined" if agreement["value"] is None else f"r = {agreement['value']:.2f}"
        lines.append(f"Ablated many at a time; with one at a time {r} (n = {agreement['n']:,}).")
    if n["words"]:
        lines.append(", ".join(f"{count:,} {word}" for word, count in n["words"].items()) + ".")
    return lines + [f"Not computed ({role.replace('_', ' ')}): {why}." for role, why in about["missing"].items()]


def latents(found: Trust) -> list[dict[str, Any]]:
    """Every card as JSON has it; the latent's number is its ``index``."""
    from workbench.results.trust import plain

    rows = found.cards.rename(columns={"latent": "index"}).to_dict("records")
    return [{str(k): plain(v) for k, v in row.items()} for row in rows]
