"""Commands as the pages show them: they run as pasted, from any folder and without an activated environment."""

from __future__ import annotations

import html
import re
import shlex
import sys
from functools import cache
from pathlib import Path

from workbench.markup.tags import div

_WHERE = re.compile(r"\s--workspace(=|\s+)\S+")


@cache
def program() -> str:
    """``workbench`` of this very installation by its full path, else the module by this very Python."""
    script = Path(sys.executable).with_name("workbench")
    return shlex.quote(str(script)) if script.is_file() else f"{shlex.quote(sys.executable)} -m workbench"


def absolute(command: str, workspace: Path) -> str:
    """``workbench VERB …`` with the full path of the program and of the workspace, whatever it named before."""
    said = _WHERE.sub("", command.strip())
    verb = said.removeprefix("workbench").strip()
    return f"{program()} {verb} --workspace {shlex.quote(str(workspace.resolve()))}"


def run_html(command: str) -> str:
    """A command with a button that copies it."""
    text = html.escape(command, quote=True)
    copy = f'<button type="button" class="wb-copy" data-copy="{text}" aria-label="Copy the command">copy</button>'
    return div("run", f"run <code>{text}</code> {copy}")
