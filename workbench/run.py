"""How a verb runs, apart from what it makes: what it says on the way, and the command that is recorded with the result.

Every function of the face (``workbench.harvest``, ``workbench.train``, …) takes a :class:`Run`. Nothing in it changes
what a result is.
"""

from __future__ import annotations

import functools
import inspect
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from workbench.workspace import Workspace

T = TypeVar("T")


class Bar(Protocol):
    """A progress bar that is being shown."""

    def update(self, n: int = 1) -> None:
        """``n`` more are done."""

    def reach(self, done: int, total: int) -> None:
        """``done`` of ``total`` are done."""

    def part(self, name: str) -> None:
        """The next part, called ``name``, begins."""


class _NoBar:
    def update(self, n: int = 1) -> None:
        pass

    def reach(self, done: int, total: int) -> None:
        pass

    def part(self, name: str) -> None:
        pass


NO_BAR: Bar = _NoBar()


@contextmanager
def _no_bar(label: str, total: int | None = None, unit: str = "it") -> Iterator[Bar]:
    yield NO_BAR


def _silent(line: str) -> None:
    pass


Maker = Callable[[str, int | None, str], AbstractContextManager[Bar]]
_SHOWING: ContextVar[Maker] = ContextVar("showing", default=_no_bar)


@contextmanager
def showing(bar: Maker) -> Iterator[None]:
    """Inside, :func:`long_step` shows its bars by ``bar``."""
    token = _SHOWING.set(bar)
    try:
        yield
    finally:
        _SHOWING.reset(token)


def long_step(label: str, total: int | None = None, unit: str = "it") -> AbstractContextManager[Bar]:
    """The bar of a step that many functions take on their way and nobody hands a bar to, such as reading and cutting
    text; silent outside :func:`showing`.
    """
    return _SHOWING.get()(label, total, unit)


@dataclass(frozen=True)
class Run:
    """What a caller may say about a run.

    Attributes:
        command: recorded in the manifests of what is made; empty: derived from the call.
        say: called with one line at a time for a person. bar: ``bar(label, total, unit)`` is a context manager that
            shows how far a loop is and what is left.
        replace: make results anew whose recipe or inputs are not those asked for, instead of refusing them (see
            :mod:`workbench.results.reuse`).
    """

    command: str = ""
    say: Callable[[str], None] = _silent
    bar: Maker = _no_bar
    replace: bool = False

    def each(self, items: Iterable[T], label: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
        """The items, with a bar that moves when the next one is asked for."""
        if total is None and isinstance(items, Sequence):
            total = len(items)
        with self.bar(label, total, unit) as bar:
            for item in items:
                yield item
                bar.update()


QUIET = Run()


def command_of(verb: str, what: Sequence[Any], options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The shell command of a call: ``workbench VERB WHAT… --option value…`` with what differs from the defaults.

    Flags that are off become ``--no-NAME``, lists of numbers are joined by commas, other
    lists repeat their option, mappings become ``--NAME key=value``. A recipe
    that is an object and no file stands in the manifest; the command then names it by ``RECIPE``.
    """
    words = ["workbench", verb, *(_word(x) for x in what)]
    for name, value in options.items():
        if value == defaults.get(name) or value is None:
            continue
        flag = "--" + name.rstrip("_").replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, Mapping):
            words += [w for k, v in value.items() for w in (flag, f"{k}={v}")]
        elif isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value):
            words += [flag, ",".join(map(str, value))] if value else []
        elif isinstance(value, (list, tuple)):
            words += [w for v in value for w in (flag, _word(v))]
        else:
            words += [flag, _word(value)]
    return shlex.join(words)


def _word(value: Any) -> str:
    """One argument as it is typed: a path by its last part, since a workspace holds no absolute path."""
    if isinstance(value, (str, os.PathLike)):
        path = Path(value)
        return path.name if path.is_absolute() else os.fspath(value)
    return str(value) if isinstance(value, (int, float)) else "RECIPE"


def opened(
    workspace: Workspace | str | Path, run: Run | None, *, replace_results: bool = False
) -> tuple[Workspace, Run]:
    """What a function of the face works with: the workspace (made if missing), and how it runs."""
    from workbench.workspace import Workspace

    run = run or QUIET
    run = replace(run, replace=True) if replace_results else run
    home = workspace if isinstance(workspace, Workspace) else Workspace(workspace)
    home.use()
    return home, run


F = TypeVar("F", bound=Callable[..., Any])


def recorded(verb: str, *, unrecorded: Sequence[str] = ()) -> Callable[[F], F]:
    """Make a function of the face: its workspace may be a path, and its command is derived from its own arguments.

    The function takes ``(workspace, what, *, <options>, run)``; a ``what`` that is a tuple or list is several words.
    Options in ``unrecorded``, and ``replace``, change nothing in the result.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        _, what_name = list(signature.parameters)[:2]
        defaults = {n: p.default for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = dict(bound.arguments)
            what = given.pop(what_name)
            workspace, run = opened(given.pop("workspace"), given.pop("run"))
            if not run.command:
                words = what if isinstance(what, (tuple, list)) else [what]
                options = {name: value for name, value in given.items() if name not in (*unrecorded, "replace")}
                run = replace(run, command=command_of(verb, words, options, defaults))
            return function(workspace, what, **given, run=run)

        return call  # type: ignore[return-value]

    return decorate
