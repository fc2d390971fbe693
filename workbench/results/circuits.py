"""Read a result of `workbench circuits` without a model: numpy and pandas only.

A folder `circuits/<id>/` holds `effects.parquet` (every effect, one row each), `scores.parquet` (attention scores;
layers with heads), `lifetimes.parquet` (recurrent layers: what is left of a write after `offset` positions, by
`content` of the token; `survival`, `low`, `high`, `n` texts), `prompts.json` (example prompts as token strings with
their marks), `arrays.npz` (per-prompt profiles, maps, channels) and the manifest.

Columns of `effects`: `analysis` (activation, ablation, head_to_logit, head_to_head, read_profile, state_to_logit,
y_to_logit, write_profile, conv_profile, channels; attribution: effects to first order, which on large models choose
what is measured), `path` (total, direct, residual, first-order), `source` (corrupt, control, zero, mean, resample),
`site`, `layer`, `unit` (head or channel, -1 = all), `receiver` (L2H3.k), `position` (label), `offset` (from the focus
mark), `tap`, `metric`, `effect`, `low`, `high`, `n`. Effects are metric after minus metric before.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae.files import read_json
from workbench.results.archives import npz_names, read_npz
from workbench.results.result import Result


class CircuitResult(Result):
    """One model's circuit analyses on one task. ``metadata``: model, revision, architecture, task, n_prompts, length,
    offsets, …
    """

    kind, noun, verb = "circuits", "circuits", "circuits MODEL"

    @classmethod
    def open(cls, folder: str | Path) -> CircuitResult:
        """Open a complete result.

        Raises:
            MissingError: not there or not complete. CorruptError: another kind of result.
        """
        return cls(Path(folder), cls.read_manifest(Path(folder)))

    @cached_property
    def effects(self) -> pd.DataFrame:
        """All effects, tidy; see the module docstring."""
        return pd.read_parquet(self.folder / "effects.parquet")

    def select(self, **equal: Any) -> pd.DataFrame:
        """Rows of `effects` whose columns have the given values."""
        table = self.effects
        for column, value in equal.items():
            table = table[table[column] == value]
        return table.reset_index(drop=True)

    @cached_property
    def scores(self) -> pd.DataFrame | None:
        """Attention scores per head; None for models without attention."""
        path = self.folder / "scores.parquet"
        return pd.read_parquet(path) if path.is_file() else None

    @cached_property
    def lifetimes(self) -> pd.DataFrame | None:
        """What is left of writes, by layer, content and offset; None for models without recurrent layers, and for
        results of versions before there were any.
        """
        path = self.folder / "lifetimes.parquet"
        return pd.read_parquet(path) if path.is_file() else None

    @cached_property
    def prompts(self) -> list[dict[str, Any]]:
        """Example prompts: `tokens`, `corrupt` (strings), `answer`, `wrong`, `marks` (name → position), `correct`,
        `logit_diff`.
        """
        return read_json(self.folder / "prompts.json")

    def arrays(self) -> list[str]:
        """Names of the stored arrays. Raises CorruptError for an archive that is none of ours."""
        return npz_names(self.folder / "arrays.npz")

    def array(self, name: str) -> np.ndarray:
        """One stored array. Raises MissingError naming the nearest; CorruptError for an archive that
        is none of ours.
        """
        return read_npz(self.folder / "arrays.npz", name)
