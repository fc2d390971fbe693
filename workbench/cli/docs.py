"""``workbench docs``: the documentation, from the installed files, in the browser."""

from __future__ import annotations

import sys
import webbrowser
from typing import Annotated, Any

import typer

from workbench.cli.common import DebugOption, JsonOption, say, verb

PORT = 8502


@verb
def docs(
    what: Annotated[
        str,
        typer.Argument(
            help="Where to open it: a verb (`compare`), a word or column of the glossary (`twin`), or a page."
        ),
    ] = "",
    port: Annotated[
        int | None, typer.Option("--port", "-p", help=f"Port on this machine (default: {PORT}).", metavar="N")
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open a browser window (only ever from a terminal).")
    ] = True,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any] | None:
    """Show this documentation, offline: the site that was installed with the program, on this machine only (127.0.0.1).
    Ctrl-C ends it. Without a terminal, as in a script or a pipe, the file to open is printed and nothing is served,
    unless `--port` says where.

    With `--json` the folder of the site and the page asked for are printed, and nothing is served; its `index.html`
    may also be opened from disk, where all but the search works.

    Example: `workbench docs`, or `workbench docs compare`, or `workbench docs "given the token"`
    """
    from workbench.cli import available
    from workbench.cli.ui import check_port
    from workbench.serving.site import LOOPBACK, address, server, site_folder

    folder = site_folder()
    page = address(what, tuple(available()))
    file = folder / page.partition("#")[0]
    if json_output:
        return {"site": str(folder), "page": page, "file": str(file)}
    if port is None and not (sys.stdout is not None and sys.stdout.isatty()):
        say("no terminal, so nothing is served (--port N serves all the same); the page asked for is this file:")
        print(file)
        return None
    port = PORT if port is None else port
    check_port(port)
    serving = server(port)
    here = f"http://{LOOPBACK}:{port}/{page}"
    say(f"documentation  ->  {here}   (Ctrl-C ends it)")
    if browser and sys.stderr.isatty():
        webbrowser.open(here)
    with serving:
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            say("ended.")
    return None
