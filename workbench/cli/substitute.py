"""``workbench substitute``: do atoms of writes do a recurrent layer's work?"""

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
def substitute(
    dictionary: Annotated[str, typer.Argument(help="A dictionary of writes, as `workbench train mini-write` makes.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    atoms: Annotated[int, typer.Option(help="At most so many atoms, evenly over how often they fire.", min=1)] = 64,
    firings: Annotated[int, typer.Option(help="Firings per atom.", min=1)] = 24,
    sequences: Annotated[int, typer.Option(help="Sequences of its store, held-out ones first.", min=1)] = 128,
    window: Annotated[int, typer.Option(help="Positions looked at, from the write on.", min=2)] = 16,
    strongest: Annotated[
        bool, typer.Option("--strongest", help="Only where the atom is the strongest of its write, as WriteSAE tries.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of firings, random writes and the permuted dictionary.")] = 0,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Put an atom in the place of a recurrent layer's own write where it fires, and see what the model makes of it.

    The atom is scaled by its code, as it adds to the reconstruction. It wins where it leaves the model closer to its
    clean run than writing nothing does: in the next-token distributions from there on, in the next token alone, and in
    what the layer's later positions read (WriteSAE, arXiv 2605.12770). Controls of equal norm: another atom of the
    dictionary, a random write, and the principal direction of writes that fits best. Beside them the change of the
    logits in closed form against the measured one.

    Example: `workbench substitute mini-mamba.L1W-2x`
    """
    from workbench.results.substitutions import CONTROLS, SHOWN
    from workbench.verbs.analysing import substitute as run

    item = run(
        workspace,
        dictionary,
        atoms=atoms,
        firings=firings,
        sequences=sequences,
        window=window,
        strongest=strongest,
        seed=seed,
        replace=replace,
        run=terminal_run(),
    )
    n, about = item.manifest.numbers, item.manifest.metadata
    say(
        f"{n['firings']} firings of {n['atoms']} atoms of {about['dictionary']} (median cosine with the write"
        f" {_shown(n['cosine'])}). How often each is nearer to the clean run than writing nothing, over"
        f" {about['window']} next-token distributions:"
    )
    for arm, found in {"atom": n["win_rate"], "matched": n["matched"], "whole": n["whole"], **n["controls"]}.items():
        say(
            f"  {SHOWN[arm]:28} {_shown(found['win_rate'])} [{_shown(found['low'])}, {_shown(found['high'])}]  repairs"
            f" {_shown(found['repaired'])} of the damage  n {found['n']}"
        )
    if n["leading"]["atom"]["n"] and not strongest:
        say(
            f"where the atom is the strongest of its write (n {n['leading']['atom']['n']}): "
            + ", ".join(f"{SHOWN[arm]} {_shown(n['leading'][arm]['win_rate'])}" for arm in ("atom", *CONTROLS))
        )
    r2 = n["closed_form"]["r2"]
    say(f"change of the logits in closed form: R² {_shown(r2['value'])} [{_shown(r2['low'])}, {_shown(r2['high'])}]")
    say(f"{item.path} (version {item.version})")
    return result_of(item) | n | {"metadata": about}


def _shown(value: float | None) -> str:
    return "  –  " if value is None else f"{value:.3f}"
