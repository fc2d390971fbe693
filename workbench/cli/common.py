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
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

T = TypeVar("T")
err = Console(stderr=True, highlight=False, soft_wrap=True)

WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder that holds the results; created if missing.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, everything else on stderr.")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DEFAULT_WORKSPACE = Path("workspace")


def quiet_libraries() -> None:
    """Keep libraries from calling home; the user's own settings win."""
    os.environ.setdefault("WANDB_MODE", "disabled")
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


def progress(items: Iterable[T], *, total: int | None = None, label: str = "", unit: str = "it") -> Iterator[T]:
    """Iterate with a progress bar on stderr (silent where stderr is not a terminal, except for its last line)."""
    from tqdm import tqdm

    return iter(
        tqdm(
            items,
            total=total,
            desc=label,
            unit=unit,
            file=sys.stderr,
            mininterval=0.5 if sys.stderr.isatty() else 15,
            dynamic_ncols=True,
        )
    )


@contextmanager
def progress_to(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told where it stands: yields ``show(done, total)``."""
    from tqdm import tqdm

    bar: Any = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(
                total=total,
                initial=done,
                desc=label,
                unit=unit,
                file=sys.stderr,
                mininterval=0.5 if sys.stderr.isatty() else 15,
            )
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


@contextmanager
def parts_to(label: str, total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A progress bar over named parts of unequal length: yields ``step(name)``, to be called as each begins.

    Nothing is drawn before the first.
    """
    from tqdm import tqdm

    bar: Any = None

    def step(name: str) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(
                total=total, desc=label, unit="part", file=sys.stderr, mininterval=0.5 if sys.stderr.isatty() else 15
            )
        else:
            bar.update()
        bar.set_postfix_str(name, refresh=False)

    try:
        yield step
    finally:
        if bar is not None:
            bar.update()
            bar.close()


@contextmanager
def errors_as_lines(debug: bool) -> Iterator[None]:
    """Print what a person can mend as one line, and exit with its code (1, where the error names none); Ctrl-C exits
    130.
    """
    from sae.errors import UserError

    try:
        yield
    except KeyboardInterrupt as e:
        say("interrupted; run the same command again to go on where it stopped.")
        raise typer.Exit(130) from e
    except (UserError, OSError, MemoryError, RuntimeError) as e:
        message = _message(e)
        if message is None:
            raise
        if debug:
            traceback.print_exc()
        if not getattr(e, "said_elsewhere", False):  # else the process in which it happened says it
            n = process_number()
            err.print(f"process {n}: error: {message}" if n else f"error: {message}", style="bold red", markup=False)
        raise typer.Exit(getattr(e, "exit_code", 1)) from e


def _message(e: BaseException) -> str | None:
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


def verb(function: Callable[..., dict[str, Any] | None]) -> Callable[..., None]:
    """Turn a function into a verb: errors become one line, and its returned dict is printed where ``--json`` asks.

    The function must take ``json_output`` and ``debug`` keyword arguments (see JsonOption, DebugOption). A key
    ``exit_code`` of the dict is not printed: the command ends with it after the document.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        quiet_libraries()
        stdout = sys.stdout
        if kwargs.get("json_output"):
            sys.stdout = sys.stderr  # whatever a library prints must not spoil the document
        try:
            with errors_as_lines(bool(kwargs.get("debug"))):
                result = function(*args, **kwargs)
        finally:
            sys.stdout = stdout
        code = int(result.pop("exit_code", 0)) if result else 0
        if kwargs.get("json_output") and process_number() == 0:
            print(json.dumps(result if result is not None else {}, indent=2, ensure_ascii=False))
        if code:
            raise typer.Exit(code)

    return run
