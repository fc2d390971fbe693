"""``workbench models``: the models of a workspace, and where they lie on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, say, verb


@verb
def models(
    id: Annotated[str, typer.Argument(help="A model of the workspace that lies outside it.", metavar="[ID]")] = "",
    folder: Annotated[
        Path | None, typer.Argument(help="The folder (or GGUF file) on this machine that holds its weights.")
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """List the models a workspace names, or say where one of them lies on this machine.

    A workspace holds no path: a model folder is known there by its name and the digest of its weights. Where it lies is
    a setting of your own (`models.json` in the configuration folder), made when a verb is first given the folder. After
    the model or the workspace has moved, say it once; other weights are refused.

    Examples: `workbench models`, `workbench models my-model ~/models/my-model`
    """
    from sae.errors import UsageError
    from workbench.models.places import settings_file
    from workbench.models.pointers import describe_models, set_place
    from workbench.workspace import Workspace

    home = Workspace(workspace, create=False)
    if id:
        if folder is None:
            raise UsageError(f"say where {id!r} lies: workbench models {id} FOLDER")
        digest = set_place(home, id, folder)
        say(f"{id}: weights {digest[:12]} lie in {folder} (noted in {settings_file()})")
    found = describe_models(home)
    if not id and not json_output:
        for m in found:
            print(f"{m['id']:24} {m['kind']:10} {m['where']}")
    return {"models": found}
