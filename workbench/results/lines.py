"""Several models over their training: the snapshots of each, and when a latent they share emerges in it.

Axes: K snapshots of a model, F latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
HALF = 0.5  # of its largest value in a model: there a latent has emerged
NEAR = 0.5  # doublings within which two snapshots count as of one step
MIN_SHARED = 30  # shared latents from which statements about their order are made
LEAST = 4  # snapshots in common, the last ones beside, from which two models' times are held against each other
STATEMENTS = 2  # schema of statements about several models; 2: at snapshots in common, over latents that a pair shares


class Snapshot(Protocol):
    """A source of a crosscoder that is one snapshot of a model."""

    @property
    def model(self) -> str: ...
    @property
    def hook(self) -> str: ...
    @property
    def step(self) -> int | None: ...


@dataclass(frozen=True)
class Line:
    """The snapshots of one model in one crosscoder: their places among its sources, in training order, and steps."""

    model: str
    hook: str
    sources: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def time(self) -> Floats:
        """[K] doublings of the training step; step 0 lies one below the first step after it."""
        steps = np.asarray(self.steps, np.float64)
        return np.log2(np.maximum(steps, steps[steps > 0].min() / 2))

    def only(self, places: list[int]) -> Line:
        """The line of some of its snapshots."""
        return replace(self, sources=tuple(self.sources[i] for i in places), steps=tuple(self.steps[i] for i in places))


def recorded_lines(metadata: Mapping[str, Any]) -> list[Line]:
    """The models of an evolution, from its metadata."""
    return [Line(m["model"], m["hook"], tuple(m["sources"]), tuple(m["steps"])) for m in metadata["architectures"]]


def lines_of(sources: Sequence[Snapshot]) -> list[Line]:
    """The models of a crosscoder that is read over the training of at least two of them; empty for any other."""
    found: dict[tuple[str, str], list[int]] = {}
    for i, s in enumerate(sources):
        found.setdefault((s.model, s.hook), []).append(i)
    lines = []
    for (model, hook), places in found.items():
        steps = [s.step for s in sources if (s.model, s.hook) == (model, hook) and s.step is not None]
        if len(steps) < max(3, len(places)) or sorted(set(steps)) != steps:
            return []
        lines.append(Line(model, hook, tuple(places), tuple(steps)))
    return lines if len({line.model for line in lines}) > 1 else []


def in_common(first: Line, second: Line) -> tuple[Line, Line] | None:
    """Two models at the snapshots that both have at about one step (:data:`NEAR`), and at the end of each one's
    training; None where there are fewer than :data:`LEAST` beside the end.

    Only there does a later emergence belong to the model: between snapshots that one of the two lacks, and at step 0,
    which lies as far back as its first snapshot after it, it may be one of the snapshots.
    """
    near = []
    for i, j in product(range(len(first.steps) - 1), range(len(second.steps) - 1)):
        a, b = first.steps[i], second.steps[j]
        if (a == 0) == (b == 0):
            near.append((abs(np.log2(a / b)) if a else 0.0, i, j))
    chosen: list[tuple[int, int]] = []
    for apart, i, j in sorted(near):
        if apart <= NEAR and all((i - x) * (j - y) > 0 for x, y in chosen):  # in order, each once
            chosen.append((i, j))
    if len(chosen) < LEAST:
        return None
    ours, theirs = zip(*sorted(chosen), strict=True)
    return first.only([*ours, len(first.steps) - 1]), second.only([*theirs, len(second.steps) - 1])


def emergence(curves_KF: npt.ArrayLike, time_K: Floats) -> Floats:
    """[F] time at which each curve first reaches half of its largest value; NaN where it has none above zero."""
    x = np.nan_to_num(np.asarray(curves_KF, np.float64), nan=0.0)
    top = x.max(axis=0)
    r = x / np.where(top > 0, top, np.inf)
    at = (r >= HALF).argmax(axis=0)
    before, column = np.maximum(at - 1, 0), np.arange(r.shape[1])
    low, high = r[before, column], r[at, column]
    part = np.where(at > 0, (HALF - low) / np.where(high > low, high - low, 1), 0)
    return np.where(top > 0, time_K[before] + part * (time_K[at] - time_K[before]), np.nan)


def lag(first: Line, second: Line, curves_SF: npt.ArrayLike) -> tuple[Floats, int]:
    """([F] doublings of the step by which the second model is later, how many snapshots in common it is read from);
    all NaN and 0 where the two have too few in common.
    """
    curves = np.asarray(curves_SF, np.float64)
    common = in_common(first, second)
    if common is None:
        return np.full(curves.shape[1], np.nan), 0
    early, late = (emergence(curves[list(line.sources)], line.time) for line in common)
    return late - early, len(common[0].steps)
