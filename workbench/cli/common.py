"""What every verb shares: the workspace option, ``--json``, ``--debug``, progress bars, and errors as one clear line.

A verb is a plain function with typer annotations, decorated with :func:`verb`. It returns a JSON-ready dict, or None.
With ``--json`` stdout carries exactly that document; everything else goes to stderr.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console

from workbench.run import NO_BAR, Bar, Run, showing

if TYPE_CHECKING:
    from workbench.planning.dry_run import Built
    from workbench.workspace import Item

err = Console(stderr=True, highlight=False, soft_wrap=True)

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder that holds the results; created if missing.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, everything else on stderr.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ReplaceOption = Annotated[
    bool,
    typer.Option(
        "--replace",
        help=(
            "Make anew what is there with another recipe or other inputs; the old folder stays until the new one is"
            " whole."
        ),
    ),
]
DEFAULT_WORKSPACE = Path("workspace")
TEXTS = "a file or folder of yours, mini (code of Python's own library) or prose (its documentation)."


def quiet_libraries() -> None:
    """Keep libraries from calling home; the user's own settings win."""
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def process_number() -> int:
    """Which of the processes that torchrun started together this is; 0 where it runs alone."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def say(message: str, *, style: str | None = None) -> None:
    """One line for the person at the terminal (stderr, so that stdout stays a document); of several processes the first
    speaks.
    """
    if process_number() == 0:
        err.print(message, style=style, markup=False)


class _Terminal:
    """A bar on stderr, drawn when the first step is done or the first part begins, and not before ``delay`` seconds."""

    def __init__(self, label: str, total: int | None, unit: str, delay: float):
        self.label, self.total, self.unit, self.delay = label, total, unit, delay
        self.bar: Any = None
        self.began, self.done, self.initial = time.time(), 0, 0
        self.begun = False

    def _at(self, done: int) -> None:
        self.done = done
        if self.bar is None and time.time() >= self.began + self.delay:
            from tqdm import tqdm

            self.bar = tqdm(
                total=self.total,
                initial=self.initial,
                desc=self.label,
                unit=self.unit,
                unit_scale=self.unit in ("row", " characters"),
                file=sys.stderr,
                mininterval=0.5 if sys.stderr.isatty() else 15,
                dynamic_ncols=True,
            )
            if self.delay:
                # what was done unseen counts for the speed, and so for the time that is left
                self.bar.start_t = self.bar.last_print_t = self.began
        if self.bar is not None:
            self.bar.update(done - self.bar.n)

    def update(self, n: int = 1) -> None:
        self._at(self.done + n)

    def reach(self, done: int, total: int) -> None:
        self.total = total
        if self.bar is None and not self.delay:
            self.initial = done  # what an earlier run did says nothing of the speed of this one
        self._at(done)

    def part(self, name: str) -> None:
        self._at(self.done + int(self.begun))  # the one before is done when the next begins
        self.begun = True
        if self.bar is not None:
            self.bar.set_postfix_str(name, refresh=False)


@contextmanager
def bar(label: str, total: int | None = None, unit: str = "it", *, delay: float = 0) -> Iterator[Bar]:
    """A progress bar on stderr with the time left (silent where stderr is not a terminal, except for its last line).

    One that is done within ``delay`` seconds is never seen.
    """
    shown = _Terminal(label, total, unit, delay)
    try:
        yield shown
    finally:
        if shown.bar is not None:
            shown.update(int(shown.begun))
            shown.bar.close()


def _deep_bar(label: str, total: int | None = None, unit: str = "it") -> AbstractContextManager[Bar]:
    """How steps that nobody hands a bar to are shown: by the first of several processes, once they take two seconds."""
    return nullcontext(NO_BAR) if process_number() else bar(label, total, unit, delay=2)


def terminal_run(*, replace: bool = False) -> Run:
    """How a verb runs for a person at a terminal. The command that is recorded is derived from the call."""
    return Run(say=say, bar=bar, replace=replace)


def show_dry_run(built: Built) -> dict[str, Any]:
    """Say what a dry run built; returns its document."""
    from workbench.planning.dry_run import lines_of

    for line in lines_of(built):
        say(line)
    return built.as_json()


def result_of(item: Item) -> dict[str, Any]:
    """What every verb prints of what it made."""
    return {"id": item.id, "path": str(item.path), "version": item.version}


@contextmanager
def errors_as_lines(debug: bool, told: Callable[[dict[str, Any]], None] = lambda document: None) -> Iterator[None]:
    """Print what a person can mend as one line, and exit with its code (1, where the error names none); Ctrl-C exits
    130. ``told`` is given the same as a document: ``error``, the line, and ``exit_code``. What may be the program's own
    fault is told too, by its kind and first line, and raised on: its traceback is what mends it.
    """
    try:
        yield
    except KeyboardInterrupt as e:
        message = "interrupted; run the same command again to go on where it stopped."
        say(message)
        told({"error": message, "exit_code": 130})
        raise typer.Exit(130) from e
    except typer.Exit:  # a verb's own end
        raise
    except Exception as e:
        line = message_of(e)
        if line is None:
            first = next(iter(str(e).splitlines()), "")
            told({"error": f"{type(e).__name__}: {first}" if first else type(e).__name__, "exit_code": 1})
            raise
        if debug:
            traceback.print_exc()
        if not getattr(e, "said_elsewhere", False):  # else the process in which it happened says it
            n = process_number()
            err.print(f"process {n}: error: {line}" if n else f"error: {line}", style="bold red", markup=False)
        code = getattr(e, "exit_code", 1)
        told({"error": line, "exit_code": code})
        raise typer.Exit(code) from e


def message_of(e: BaseException) -> str | None:
    """What to say about an error that is not the program's own; None for one that may be."""
    from sae.errors import OutOfSpace, UserError

    if isinstance(e, UserError):
        return str(e)
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
        return str(OutOfSpace(str(e.filename or "a file")))
    if isinstance(e, OSError) and e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{e.filename or 'a file'}: {e.strerror}. Choose a place you may read and write."
    if _out_of_memory(e):
        return (
            f"not enough memory ({_sentence(e)}). Ask for less at once; `workbench plan RECIPE` says what a recipe"
            " needs."
        )
    return None


def _out_of_memory(e: BaseException) -> bool:
    """Whether NumPy, torch on the CPU or torch on a GPU was refused memory."""
    return isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(e)


def _sentence(e: BaseException) -> str:
    found = re.search(r"[Uu]nable to allocate [\d.]+ \w+|tried to allocate [\d.]+ \w+", str(e))
    return found[0] if found else type(e).__name__


def print_document(of: dict[str, Any], file: TextIO | None = None) -> None:
    """The one document of a command that was asked for ``--json``; on stdout, unless ``file`` says where."""
    print(json.dumps(of, indent=2, ensure_ascii=False), file=file)


def verb(function: Callable[..., dict[str, Any] | None]) -> Callable[..., None]:
    """Turn a function into a verb: errors become one line, and its returned dict is printed where ``--json`` asks.

    The function must take ``json_output`` and ``debug`` keyword arguments (see JsonOption, DebugOption). A key
    ``exit_code`` of the dict is not printed: the command ends with it after the document. Of an error the document is
    its line and its exit code.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        quiet_libraries()
        stdout = sys.stdout

        def document(of: dict[str, Any]) -> None:
            if kwargs.get("json_output") and process_number() == 0:
                print_document(of, file=stdout)

        if kwargs.get("json_output"):
            sys.stdout = sys.stderr  # whatever a library prints must not spoil the document
        try:
            with errors_as_lines(bool(kwargs.get("debug")), document), showing(_deep_bar):
                result = function(*args, **kwargs)
        finally:
            sys.stdout = stdout
        code = int(result.pop("exit_code", 0)) if result else 0
        document(result if result is not None else {})
        if code:
            raise typer.Exit(code)

    return run
