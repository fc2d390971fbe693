"""``workbench transplant``: do matched latents do each other's work?"""

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
def transplant(
    a: Annotated[str, typer.Argument(metavar="DICTIONARY_A", help="Whose latents are put in.")],
    b: Annotated[str, typer.Argument(metavar="DICTIONARY_B", help="Whose latents are taken out, in its model.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    sequences: Annotated[int, typer.Option(help="Sequences per latent.", min=4, max=512)] = 8,
    pool: Annotated[int, typer.Option(help="Sequences that these are drawn from.", min=8)] = 256,
    level: Annotated[float, typer.Option(help="Correlation from which a pair counts as matched.")] = 0.5,
    below: Annotated[
        int,
        typer.Option(help="Pairs under the level that are measured too, evenly over r: the curve's lower end.", min=0),
    ] = 96,
    latents: Annotated[
        int | None, typer.Option(help="Measure so many matched pairs, evenly over r, instead of all.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds, sequences, random directions and nulls.")] = 0,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Take latents of B out of B's forward pass, put in what their partners in A write, and see what that repairs.

    Partners are those of a comparison of the two (`workbench compare`; made where there is none). Their decoder rows
    are carried into B's space by a linear map fitted on the decoder rows of other matched pairs; one scale per pair is
    fitted on half of the sequences, and the other half is measured: loss, KL from the unedited model, and the share of
    the ablation's damage repaired. Nulls: the partner of another latent as frequent, and a random direction of equal
    norm. Ceiling: the latent's partner in another seed of B's dictionary, else its own contribution sent into A's space
    and back.

    Example: `workbench transplant mini-pythia.L1R-8x mini-mamba.L1R-8x`
    """
    from workbench.results.transplants import SHOWN, TransplantRecords
    from workbench.verbs.analysing import transplant as run

    item = run(
        workspace,
        (a, b),
        sequences=sequences,
        pool=pool,
        level=level,
        below=below,
        latents=latents,
        seed=seed,
        replace=replace,
        run=terminal_run(),
    )
    n, about = item.manifest.numbers, item.manifest.metadata
    say(
        f"{n['pairs']:,} latents of {b}, {n['matched']:,} of them with r ≥ {about['level']:g};"
        f" {n['measured']:,} of these could be measured; partners by {about['matches']}"
    )
    mapped = about["map"]
    if mapped["ridge"] is not None:
        say(
            f"decoders carried by {mapped['n_pairs']:,} pairs; left-out ones arrive at a cosine of"
            f" {mapped['cosine']:.3f}"
        )
    say("share of the ablation's damage repaired, median over matched latents [95 %]:")
    arms = {"transplant": n["repaired"], "activation": n["activation"], **n["nulls"], "ceiling": n["ceiling"]}
    for arm, found in arms.items():
        say(
            f"  {SHOWN[arm]:36} {_shown(found['median'])} [{_shown(found['low'])}, {_shown(found['high'])}] "
            f" n {found['n']}"
        )
    say(f"  (ceiling: {about['ceiling']})")
    for x, found in n["rank_correlation"].items():
        say(
            f"rank correlation of {x} with the share repaired: {_shown(found['value'])}"
            f" [{_shown(found['low'])}, {_shown(found['high'])}]  n {found['n']}"
        )
    say(f"{item.path} (version {item.version})")
    return result_of(item) | n | {"pairs": _pairs(TransplantRecords.open(item.path)), "metadata": about}


def _shown(value: float | None) -> str:
    return "   –  " if value is None else f"{value:+.3f}"


def _pairs(records: Any) -> list[dict[str, Any]]:
    """Every pair with its numbers; ``repaired`` is what the transplant repairs, null where it was not measured."""
    frame = records.pairs.rename(columns={f"transplant{e}": f"repaired{e}" for e in ("", "_low", "_high")})
    rows: list[dict[str, Any]] = frame.to_dict("records")
    return [{k: None if isinstance(v, float) and v != v else v for k, v in row.items()} for row in rows]
