"""Answers kept for one run of a script: within it every part of a page sees the same workspace, and it is looked at
once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from streamlit.runtime.scriptrunner import get_script_run_ctx

P = ParamSpec("P")
T = TypeVar("T")


class _Kept(threading.local):
    """One thread's answers, and the object that says which run they belong to."""

    run: object = None
    answers: dict[object, object]


_kept = _Kept()


def once_per_run(function: Callable[P, T]) -> Callable[P, T]:
    """``function`` is called once per run of the script (or of a fragment) and arguments, which must be hashable.

    Outside a run (a test, a thread that draws a figure) it is called every time. Callbacks belong to the run they
    begin; what one of them changes must be asked for without this.
    """

    @wraps(function)
    def ask(*args: P.args, **kwargs: P.kwargs) -> T:
        context = get_script_run_ctx(suppress_warning=True)
        if context is None:
            return function(*args, **kwargs)
        if _kept.run is not context.cursors:  # a new dict with every run: ScriptRunContext.reset
            _kept.run, _kept.answers = context.cursors, {}
        key = (function, args, tuple(kwargs.items()))
        if key not in _kept.answers:
            _kept.answers[key] = function(*args, **kwargs)
        return _kept.answers[key]  # type: ignore[return-value]  # the key holds the function

    return ask
