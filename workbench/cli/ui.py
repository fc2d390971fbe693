"""``workbench ui``: browse a workspace in the browser. One process: this one becomes Streamlit."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import workbench
from sae.errors import MissingError, UsageError, UserError
from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, say, verb
from workbench.workspace import Workspace

LOOPBACK = "127.0.0.1"
PROGRAM = Path(workbench.__file__).absolute().parent.parent  # a checkout, or site-packages


@verb
def ui(
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    port: Annotated[int, typer.Option("--port", "-p", help="Port on this machine.", metavar="N")] = 8501,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open a browser window (only ever from a terminal).")
    ] = True,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any] | None:
    """Browse a workspace in the browser, on this machine only (127.0.0.1). Ctrl-C ends it.

    Example: `workbench ui --workspace workspace`
    """
    folder = Workspace(workspace).root
    check_port(port)
    command = streamlit_command(port, open_browser=browser and sys.stderr.isatty() and not json_output)
    say(f"workspace {folder}  ->  http://{LOOPBACK}:{port}   (Ctrl-C ends it)")
    environment = {**os.environ, "WORKBENCH_WORKSPACE": str(folder), "PYTHONPATH": os.pathsep.join(_python_path())}
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def check_port(port: int) -> None:
    """Refuse a port that cannot be listened on, before anything starts.

    Raises:
        UsageError: not a port number (exit 2).
        UserError: in use, or reserved for the administrator (exit 1); the message names a free one.
    """
    if not 1 <= port <= 65535:
        raise UsageError(f"--port {port} is not a port: choose a number from 1024 to 65535.")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except PermissionError as e:
            raise UserError(f"port {port} is reserved for the administrator; try --port {_free_port()}.") from e
        except OSError as e:
            raise UserError(f"port {port} is in use (another `workbench ui`?); try --port {_free_port()}.") from e


def streamlit_command(port: int, *, open_browser: bool) -> list[str]:
    """The command this process becomes. Safety-relevant options are flags, which no config file can overrule.

    Raises:
        MissingError: Streamlit, or the pages, are not installed.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise MissingError("the browser pages need Streamlit. Install it: pip install interpretability-workbench")
    options = {
        "server.address": LOOPBACK,
        "server.port": port,
        "server.headless": str(not open_browser).lower(),
        "server.fileWatcherType": "none",
        "server.enableStaticServing": "false",
        "browser.gatherUsageStats": "false",
        "runner.magicEnabled": "false",
        "client.showErrorDetails": "type",
        "client.showErrorLinks": "false",
    }
    hosts = [f"--server.allowedHosts={host}" for host in (LOOPBACK, "localhost")]
    return [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(_pages() / "server.py"),
        *(f"--{k}={v}" for k, v in options.items()),
        *hosts,
    ]


def _pages() -> Path:
    """The package of the pages: in a checkout the one that lies there, else the installed one."""
    if (beside := PROGRAM / "ui" / "workbench_ui").is_dir():
        return beside
    spec = importlib.util.find_spec("workbench_ui")
    if spec is None or not spec.submodule_search_locations:
        raise MissingError(
            "the browser pages (package `workbench_ui`) are not installed. Reinstall: pip install --force-reinstall"
            " interpretability-workbench"
        )
    return Path(next(iter(spec.submodule_search_locations))).absolute()


def _python_path() -> list[str]:
    """Where the pages find themselves and this program: where both lie, then what the user had."""
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return list(dict.fromkeys([str(_pages().parent), str(PROGRAM), *inherited]))


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind((LOOPBACK, 0))
        return int(s.getsockname()[1])
