"""The parts of a long run: which one it is at, how long the ones before took, and in the end what took how long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from workbench.run import Run


class Parts:
    """Parts that are counted as they become known: ``total`` may grow before the first one begins."""

    def __init__(self, run: Run):
        self.run, self.total, self.begun = run, 0, 0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Say which part begins and how long the run has taken, and keep how long this one takes."""
        self.begun += 1
        so_far = f", {_shown(sum(self.seconds.values()))} so far" if self.seconds else ""
        self.run.say(f"part {self.begun} of {max(self.total, self.begun)}{so_far}: {name}")
        began = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 1)

    def sum_up(self) -> None:
        """Say what took how long, the longest first."""
        longest = sorted(self.seconds.items(), key=lambda x: -x[1])
        each = ", ".join(f"{name} {_shown(seconds)}" for name, seconds in longest)
        self.run.say(f"{_shown(sum(self.seconds.values()))} in all: {each}")


def _shown(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
