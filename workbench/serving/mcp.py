"""The Model Context Protocol over stdin and stdout: an agent's client starts ``workbench serve --mcp`` and asks.

Every question of :mod:`workbench.serving.answers` is a tool, marked read-only. An error of the user's kind is the
tool's error in one line; stdout carries the protocol and nothing else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sae.errors import MissingError
from workbench.serving.answers import QUESTIONS
from workbench.version import __version__
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from mcp.server import MCPServer

ABOUT = (
    "A workspace of dictionaries (sparse autoencoders and crosscoders) of language models: their latents, comparisons,"
    " evolution over training snapshots, circuits and figures. Read-only. Ask list_results first. A number that was not"
    " computed is null; a result that says `stale` rests on something that was made again since."
)


def server(workspace: Workspace, said: Callable[[BaseException], str | None]) -> MCPServer[Any]:
    """The server of a workspace, not yet running. ``said`` gives the one line of an error a person can mend, None for
    one that is the program's own.

    Raises:
        MissingError: the library of the protocol is not installed.
    """
    try:
        from mcp.server import MCPServer
        from mcp_types import ToolAnnotations
    except ImportError as e:
        raise MissingError(
            "the Model Context Protocol needs the library `mcp`. Install it: pip install"
            " 'interpretability-workbench[mcp]'"
        ) from e
    made: MCPServer[Any] = MCPServer(
        "interpretability-workbench", instructions=ABOUT, version=__version__, log_level="WARNING"
    )
    for question in QUESTIONS:
        made.add_tool(
            _tool(question, workspace, said),
            description=" ".join((question.__doc__ or "").split()),
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )
    return made


def _tool(
    question: Callable[..., dict[str, Any]], workspace: Workspace, said: Callable[[BaseException], str | None]
) -> Callable[..., dict[str, Any]]:
    """A question about this workspace, with the protocol's kind of error."""
    from mcp.server.mcpserver.exceptions import ToolError

    @functools.wraps(question)
    def ask(**asked: Any) -> dict[str, Any]:
        try:
            return question(workspace, **asked)
        except Exception as e:
            if (message := said(e)) is None:
                raise
            raise ToolError(" ".join(message.split())) from e

    signature = inspect.signature(question, eval_str=True)
    rest = [p for name, p in signature.parameters.items() if name != "workspace"]
    ask.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
    ask.__annotations__ = {p.name: p.annotation for p in rest} | {"return": signature.return_annotation}
    return ask
