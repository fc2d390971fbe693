"""``workbench refresh``: make again what rests on inputs that were made again."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, say, verb


@verb
def refresh(
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    yes: Annotated[bool, typer.Option("--yes", help="Run the commands; without it they are only listed.")] = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Bring a workspace up to date: list the commands that make stale results again, in order; with --yes run them.

    A result is stale where a dictionary, store or model it was made from has been made again since. Each old folder
    stays until its new one is whole, so an interrupted refresh goes on when it is run again.

    Example: `workbench refresh`, then `workbench refresh --yes`
    """
    from sae.errors import UserError
    from workbench.cli.info import describe_stale
    from workbench.results.stale import commands, known_results, stale_results
    from workbench.workspace import Workspace

    home = Workspace(workspace, create=False)
    known = known_results(home)
    old = stale_results(known)
    document = describe_stale(known, old, json_output=json_output) | {"ran": []}
    todo = commands(known, old)
    if not yes:
        if todo:
            say("nothing was run; `workbench refresh --yes` runs them.")
        return document
    for command, names in todo:
        if not command:
            raise UserError(f"{', '.join(names)}: no command is recorded, so it cannot be made again from here.")
        words = [*shlex.split(command)[1:], "--workspace", str(home.root), "--replace"]
        say(f"$ workbench {shlex.join(words)}")
        done = subprocess.run([sys.executable, "-m", "workbench", *words], stdout=sys.stderr, check=False)
        if done.returncode:
            raise UserError(
                f"`{command}` failed (exit code {done.returncode}); what came before it is up to date. Mend that, and"
                " run `workbench refresh --yes` again."
            )
        document["ran"].append(command)
    left = stale_results(known_results(home))
    document["left"] = [f"{s.kind}/{s.id}" for s in left.values() if not s.by]
    say(f"{len(document['ran'])} commands; {len(document['left'])} results are still stale")
    return document
