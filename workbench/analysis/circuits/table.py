"""What circuit analyses collect: one tidy table of effects, attention scores, arrays and headline numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.circuits.effects import locate_peak, tidy
from workbench.analysis.circuits.heads import Effects
from workbench.analysis.circuits.tasks import PromptSet

OFFSETS = tuple(range(-2, 10))
EXAMPLES = 8
_COLUMNS = (
    "analysis",
    "path",
    "source",
    "site",
    "layer",
    "unit",
    "receiver",
    "position",
    "offset",
    "tap",
    "metric",
    "effect",
    "low",
    "high",
    "n",
)
_FILL: dict[str, Any] = {"source": "corrupt", "site": "", "unit": -1, "receiver": "", "position": "last", "tap": -1}


@dataclass
class Circuits:
    """What was measured: `numbers` for the manifest, `tables` joined into one, `scores`, `lifetimes`, `arrays` by
    name.
    """

    model: Any
    prompts: PromptSet
    metrics: Sequence[str]
    offsets: Sequence[int] = OFFSETS
    numbers: dict[str, Any] = field(default_factory=dict)
    tables: list[pd.DataFrame] = field(default_factory=list)
    scores: pd.DataFrame | None = None
    lifetimes: pd.DataFrame | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Position labels of the profiles: the focus mark with each offset, those inside at least one prompt."""
        every = [label_of(self.prompts.focus, o) for o in self.offsets]
        return [label for label in every if (self.prompts.position(label) >= 0).any()]

    def add(
        self, analysis: str, path: str, effects: Effects, axes: Mapping[str, Sequence[Any]], **constants: Any
    ) -> None:
        """Put effects [P, *axes] of every metric into the table."""
        for metric, values in effects.items():
            self.tables.append(tidy(values, axes, analysis=analysis, path=path, metric=metric, **constants))

    def effects(self) -> pd.DataFrame:
        """The joined table with all columns; `offset` counts from the focus mark, absent where the position is not
        relative to it.
        """
        table = pd.concat(self.tables, ignore_index=True)
        for column, value in _FILL.items():
            table[column] = table[column].fillna(value) if column in table else value
        offset = {label_of(self.prompts.focus, o): o for o in self.offsets}
        table["offset"] = table["position"].map(offset).astype("Int16")
        table = table.astype({"layer": "int16", "unit": "int32", "tap": "int8", "n": "int32"})
        return table[list(_COLUMNS)]


def label_of(mark: str, offset: int) -> str:
    """`B`, `B+1`, `B-2`."""
    return mark if offset == 0 else f"{mark}{offset:+d}"


def offset_of(label: str, found: Circuits) -> int | None:
    """Offset of a position label from the focus mark; None where it is not relative to it."""
    return next((o for o in found.offsets if label_of(found.prompts.focus, o) == label), None)


def peak_of(
    profile: np.ndarray,
    axes: Sequence[str],
    found: Circuits,
    beyond: float = 0.0,
    layers: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The located peak as a JSON-ready dict; `offset` is position minus the focus mark's. ``layers`` are those of the
    profile's axis of layers, all in order by default.
    """
    peak = locate_peak(profile, beyond=beyond)
    where = dict(zip(axes, peak.index, strict=True))
    where["layer"] = where["layer"] if layers is None else layers[where["layer"]]
    label = found.labels[where.pop("position")]
    numbers = {"effect": peak.effect.as_dict(), "share": peak.share.as_dict(), "same": peak.same}
    return {**where, "position": label, "offset": offset_of(label, found), **numbers}
