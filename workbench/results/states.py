"""Reading a result of ``workbench states``: what each layer of a model keeps of each token of a text. Numpy alone.

Axes: S snapshots, L layers that keep something (``metadata.layers``: their index and kind), T tokens, C channels.

==========================  ===================================================================================
file                        content
==========================  ===================================================================================
``texts.json``              per text: ``ids``, ``tokens``, ``predicted`` [S][T] (likeliest next token), ``atoms``
                            [S][L][T] pairs (atom, activation) where a dictionary of writes was given, else empty
``arrays.npz``              ``<p>.share`` [S, L, T, T] by reader and written, rows sum to 1; ``<p>.effect``
                            [S, L, T, T] by written and reader: nats by which the next token after the reader loses
                            when what is kept of the written one is removed (NaN: the last reader has none);
                            ``<p>.logprob`` [S, T - 1]. Of a recurrent layer k ``<p>.<k>.survival`` [S, T, T] by
                            written and offset, ``.channels`` and ``.weight`` [S, T, C]; of attention ``.heads``
                            [S, H, T, T]
==========================  ===================================================================================
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import CorruptError, UsageError
from sae.files import read_json
from workbench.results.archives import npz_names, read_npz
from workbench.results.result import Result


class States(Result):
    """A folder ``states/<id>/``."""

    kind, noun, verb = "states", "states", "states MODEL"

    @classmethod
    def open(cls, folder: str | Path) -> States:
        """Open a complete result.

        Raises:
            MissingError: not there or not complete. CorruptError: another kind of result, or a file is gone.
        """
        found = cls(Path(folder), cls.read_manifest(Path(folder)))
        for name in ("texts.json", "arrays.npz"):
            if not (found.folder / name).is_file():
                raise CorruptError(
                    f"{found.folder / name} is missing. Remove the folder and run: {found.manifest.command}"
                )
        return found

    @cached_property
    def texts(self) -> list[dict[str, Any]]:
        """Texts with their tokens as shown."""
        return read_json(self.folder / "texts.json")

    @property
    def layers(self) -> list[dict[str, Any]]:
        """``layer`` and ``kind`` of every layer that keeps something, in order."""
        return list(self.metadata["layers"])

    @property
    def layer_names(self) -> list[str]:
        """``layer 2 (Mamba)``."""
        return [f"layer {x['layer']} ({x['kind']})" for x in self.layers]

    @property
    def snapshot_names(self) -> list[str]:
        """Revisions in order; a model without snapshots is ``final``."""
        return [str(r or "final") for r in self.metadata["revisions"]]

    def checked(self, text: int) -> int:
        """The number of a text.

        Raises:
            UsageError: there is no such text.
        """
        if not 0 <= text < len(self.texts):
            raise UsageError(f"text {text} is not in {self.id}: it has {len(self.texts)}, counted from 0.")
        return text

    def array(self, text: int, name: str) -> np.ndarray:
        """``share``, ``effect`` or ``logprob`` of a text."""
        return read_npz(self.folder / "arrays.npz", f"{self.checked(text)}.{name}")

    def of_layer(self, text: int, k: int, name: str) -> np.ndarray | None:
        """``survival``, ``channels``, ``weight`` or ``heads`` of the k-th layer; None where its kind has none."""
        full = f"{self.checked(text)}.{k}.{name}"
        return read_npz(self.folder / "arrays.npz", full) if full in self._names else None

    @cached_property
    def _names(self) -> set[str]:
        return set(npz_names(self.folder / "arrays.npz"))


def half_lives(survival: np.ndarray) -> np.ndarray:
    """[...]: positions until less than half of a write is left, of survivals [..., offsets]; infinite where that is
    never within the text, NaN where nothing was written.
    """
    below = np.where(np.isnan(survival), False, survival < 0.5)
    first = np.where(below.any(-1), below.argmax(-1), np.inf)
    return np.where(np.isnan(survival[..., 0]), np.nan, first)
