"""``workbench map``: geometry of decoder directions."""

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
def map(
    dictionaries: Annotated[
        list[str],
        typer.Argument(help="One dictionary, or several of one space (for families, a narrow and a wide one)."),
    ],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    layout: Annotated[bool, typer.Option("--layout/--no-layout", help="Compute the UMAP, too.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the baselines and the layout.")] = 0,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Nearest neighbours against measured chance, feature-splitting families between widths, and a UMAP for the
    browser.

    Example: `workbench map mini-pythia.L1R-8x`, or `workbench map mini-pythia.L1R-8x mini-pythia.L1R-32x` for families
    """
    from workbench.verbs.measuring import map as run

    item = run(workspace, dictionaries, layout=layout, seed=seed, replace=replace, run=terminal_run())
    numbers = item.manifest.numbers
    for name, n in numbers.items():
        if "median_nearest_cosine" in n:
            say(
                f"{name}: nearest cosine {n['median_nearest_cosine']:.3f} (chance {n['median_matched']:.3f} matched,"
                f" {n['median_isotropic']:.3f} isotropic; n = {n['n_latents']:,}), {n['share_above_matched']:.1%} above"
                " the matched 99.9 %"
            )
        else:
            say(
                f"{name}: {n['share_with_parent']:.1%} of {n['n_wide']:,} have a parent, {n['share_split']:.1%} of"
                f" {n['n_narrow']:,} have split"
            )
    say(f"{item.path} (version {item.version})")
    return result_of(item) | {"numbers": numbers}
