"""Reading dose-responses: ``doses/<dictionary>.<prompt>.<key>/``, made by ``workbench steer … --dose … --keep``.
Neither torch nor h5py is needed.

``doses.parquet`` has one row per amount that was added to the latents at every position of one prompt: ``amount``,
``kl`` (nats, from the unchanged model's next-token distribution to the steered one), ``logit`` (of the followed token
less the mean logit), ``probability`` (of that token) and ``perplexity`` (of the steered continuation under the
unchanged model; null where none was made). Where metadata ``texts`` is not 0 they are means over so many held-out texts
(of the perplexity the geometric one) with ``<number>_low`` and ``<number>_high``, 95 % bootstrap over texts.
``steered.jsonl`` has the same rows and the continuations.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pandas as pd

from workbench.results.result import Result


class DoseRecords(Result):
    """One dose-response; open with :meth:`open`.

    ``metadata``: dictionary, model, revision, latents (those whose amount varies), held (pairs of a latent and the
    value it is held at), prompt, target (the followed token), tokens (made after the prompt), texts.
    """

    kind, noun = "doses", "a dose-response"
    verb = "steer DICTIONARY PROMPT --add LATENT=1 --dose 0,2,4,8 --keep"

    @classmethod
    def open(cls, folder: str | Path) -> DoseRecords:
        """Open a dose-response's folder.

        Raises:
            MissingError: not there or not complete. CorruptError: another kind of result, or the table is gone.
        """
        folder = Path(folder)
        return cls(folder, cls.read_tables(folder, ("doses",)))

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per amount, the smallest first."""
        return pd.read_parquet(self.folder / "doses.parquet").sort_values("amount", ignore_index=True)
