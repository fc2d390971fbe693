"""``workbench verify``: is a dictionary what its configuration says?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import (
    DEFAULT_WORKSPACE,
    TEXTS,
    DebugOption,
    JsonOption,
    WorkspaceOption,
    say,
    terminal_run,
    verb,
)

_SHOWN = ("l0", "ev", "ev_inliers", "delta_ce", "ce_recovered_mean", "dead_share")


@verb
def verify(
    dictionary: Annotated[
        str,
        typer.Argument(help="Id of a dictionary of the workspace, a folder of any library, or REPOSITORY:FOLDER."),
    ],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    library: Annotated[str | None, typer.Option(help="Whose folder it is; found by its files if not given.")] = None,
    sequences: Annotated[int, typer.Option(help="Sequences of text.", min=2)] = 32,
    ctx: Annotated[int | None, typer.Option(help="Tokens per sequence (128, or its store's).", min=4)] = None,
    model: Annotated[str | None, typer.Option(help="Model it was trained on, where it does not say.")] = None,
    revision: Annotated[str | None, typer.Option(help="Snapshot of the model, where it does not say.")] = None,
    hook: Annotated[str | None, typer.Option(help="Hook name it reads, where it does not say.")] = None,
    corpus: Annotated[str | None, typer.Option(help=f"Text: {TEXTS}")] = None,
    seed: Annotated[int, typer.Option(help="Seed of freshly cut text.")] = 0,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Does a dictionary behave as its configuration says? What to ask before the first hour is spent on it.

    Measures L0, explained variance and ΔLM loss on a few thousand tokens beside what the folder claims, and tries the
    usual mistakes: rows in other units, neighbouring hooks, with or without a BOS token, other snapshots of the model.
    The one under which the numbers fit is named.

    Exit 0: the numbers look like the dictionary the configuration describes. Exit 1: they do not. Nothing is kept.

    Example: `workbench verify mini-pythia.L1R-8x`, or
    `workbench verify downloads/trainer_0 --model mini-pythia --hook blocks.1.hook_resid_post`
    """
    from workbench.verbs.measuring import verify as run

    found = run(
        workspace,
        dictionary,
        library=library,
        sequences=sequences,
        ctx=ctx,
        model=model,
        revision=revision,
        hook=hook,
        corpus=corpus,
        seed=seed,
        run=terminal_run(),
    )
    for name in _SHOWN:
        e = found.metrics[name]
        value = "not defined" if e["value"] is None else f"{e['value']:.4f}"
        say(f"{name:>20}  {value}  n = {e['n']:,} {e['unit']}")
    say(f"{'median lengths':>20}  " + ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in found.scales.items()))
    for check in found.checks:
        say(f"{'as expected' if check.ok else 'NOT AS EXPECTED':>20}  {check}")
    best = sorted(found.trials, key=lambda t: -t.ev)[:3]
    for t in best:
        say(f"{'tried':>20}  EV {t.ev:.3f}, L0 {t.l0:.1f}: {t.setting} ({t.n:,} tokens)")
    if found.start:
        say(f"{'start':>20}  {found.start}")
    say(f"{found.dictionary}: {found.verdict}", style=None if found.fits else "bold red")
    return found.as_dict() | {"exit_code": 0 if found.fits else 1}
