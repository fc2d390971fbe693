"""Signals that stop a harvest: an exception unwinds it, and one that Python swallowed is raised again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from workbench.activations.write.writer import Producer


class Terminated(BaseException):
    """SIGTERM arrived: unwind, drop the unfinished shard, exit 143."""


def on_sigterm(signum: int, frame: FrameType | None) -> None:
    """Signal handler: unwind once; a second SIGTERM ends at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


@contextmanager
def check_signals() -> Iterator[Callable[[], None]]:
    """Yields ``listen()``, which raises again what the handlers of SIGINT and SIGTERM raised and nobody saw.

    Python prints and drops an exception raised inside a destructor or a weak reference's callback (a thread pool has
    one), and a signal may land there; whoever calls ``listen()`` between batches stops all the same. Outside the main
    thread nothing is changed.
    """
    arrived: list[Callable[[], object]] = []
    replaced = {}

    def keep(signum: int, handler: Callable[[int, FrameType | None], object]) -> None:
        def hear(signum: int, frame: FrameType | None) -> None:
            arrived.append(lambda: handler(signum, None))
            handler(signum, frame)

        replaced[signum] = (hear, handler)
        signal.signal(signum, hear)

    def listen() -> None:
        if arrived:
            arrived[0]()

    try:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(signum)
                if callable(handler):
                    keep(signum, handler)
        yield listen
    finally:
        for number, (hear, handler) in replaced.items():
            if signal.getsignal(number) is hear:  # else the handler itself has put another there
                signal.signal(number, handler)


def listening(producer: Producer, listen: Callable[[], None]) -> Producer:
    """The same producer, with ``listen()`` before every batch and after the last."""

    def produce(seq_start: int, seq_end: int) -> Iterator[dict]:
        listen()
        for batch in producer(seq_start, seq_end):
            yield batch
            listen()

    return produce
