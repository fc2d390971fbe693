"""``workbench serve``: a workspace for programs, over the Model Context Protocol."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, message_of, say, verb


@verb
def serve(
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    mcp: Annotated[
        bool,
        typer.Option(
            "--mcp", help="Speak the Model Context Protocol on stdin and stdout, as an agent's client starts it."
        ),
    ] = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any] | None:
    """Answer questions about a workspace, for an agent: what is there, latents by text, the card of a latent, matches,
    evolution, circuits, the data of any figure, manifests.

    Read-only: nothing is written, no model is loaded, no port is opened. Needs the extra `mcp`
    (`pip install 'interpretability-workbench[mcp]'`). With `--json` the questions and their parameters are printed, and
    nothing is served.

    Example of a client's configuration: `{"command": "workbench", "args": ["serve", "--mcp", "--workspace", "FOLDER"]}`
    """
    import asyncio

    from sae.errors import UsageError
    from workbench.serving.mcp import server
    from workbench.workspace import Workspace

    if not mcp:
        raise UsageError("say how to serve: `workbench serve --mcp` (for a browser: `workbench ui`).")
    made = server(Workspace(workspace, create=False), message_of)
    if json_output:
        tools = asyncio.run(made.list_tools())
        return {"tools": [{"name": t.name, "about": t.description, "parameters": t.input_schema} for t in tools]}
    say(f"workspace {workspace}: answering on stdin and stdout (Ctrl-C ends it)")
    made.run("stdio")
    return None
