"""``workbench text``: what a recipe's text becomes, before anything runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, say, verb


@verb
def text(
    recipe: Annotated[
        str, typer.Argument(help="A harvest recipe (file, or the name of a bundled one such as mini-harvest).")
    ],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    windows: Annotated[int, typer.Option(min=0, max=50, help="Random windows to show.")] = 5,
    seed: Annotated[int, typer.Option(help="Which random windows.")] = 0,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Say what a harvest would read: documents, tokens, passes over the text, special ids, lengths, what is left out,
    copies, and a few random windows as they will be seen. Nothing is written; no model runs.

    Example: `workbench text mini-harvest`; with `--json` every number is one document.
    """
    from workbench.activations import HarvestRecipe
    from workbench.activations.harvesting.run import look
    from workbench.config import read_recipe

    found = look(read_recipe(HarvestRecipe, recipe), shown=windows, seed=seed)
    if not json_output:
        for line in found.lines():
            say(line)
    return found.as_json()
