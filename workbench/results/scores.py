"""Reading scores of explanations: ``scores/<explanation>.by-<judge>/``, made by ``workbench score DICTIONARY``. Neither
torch nor h5py is needed.

``scores.parquet``   one row per latent and scorer: latent, scorer, judge, value with low and high (95 %), chance (what
                     guessing gives), n_positive and n_negative (excerpts with a readable answer), precision, recall, f1
                     (of yes/no answers), unreadable (excerpts without a readable answer, left out)
``summary.parquet``  one row per scorer: mean over latents, low, high (95 % bootstrap over latents), chance, n
                     (latents), excerpts, unreadable
``answers.jsonl``    every question to a language model, and its answer
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from workbench.provenance import MANIFEST, read_manifest
from workbench.results.result import Result


@dataclass(frozen=True)
class Scorer:
    """What a scorer is called and what its number means."""

    name: str
    unit: str
    meaning: str


SCORERS = {
    "detection": Scorer(
        "detection",
        "balanced accuracy",
        "told whether a whole excerpt holds a firing, against excerpts at random on which the latent is silent",
    ),
    "hard_detection": Scorer(
        "detection, near misses",
        "balanced accuracy",
        "the same against silent excerpts that share most tokens with those on which it fires",
    ),
    "fuzzing": Scorer(
        "fuzzing",
        "balanced accuracy",
        "told whether marked tokens are those it fires on; wrong marks lie in silent excerpts",
    ),
    "fuzzing_active": Scorer(
        "fuzzing, same excerpts",
        "balanced accuracy",
        "the same, wrong marks on other tokens of the excerpts on which it fires: the place, not the topic, decides",
    ),
    "similarity": Scorer(
        "shared words",
        "area under the ROC curve",
        "rare words that label and excerpt share, nobody is asked; a label that names a meaning scores low",
    ),
    "simulation": Scorer(
        "simulation",
        "correlation",
        "activations guessed from 0 to 10 on every token, against the true ones",
    ),
}


class ScoreRecords(Result):
    """Scores of one explanation by one judge; open with :meth:`open`.

    ``metadata``: dictionary, explanation, explainer, judge, levels.
    """

    kind, noun, verb = "scores", "scores of explanations", "score DICTIONARY"

    @classmethod
    def open(cls, folder: str | Path) -> ScoreRecords:
        """Open a folder of scores.

        Raises:
            MissingError: not there or not complete. CorruptError: another kind of result, or a table is gone.
        """
        folder = Path(folder)
        return cls(folder, cls.read_tables(folder, ("scores", "summary")))

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per latent and scorer."""
        return pd.read_parquet(self.folder / "scores.parquet")

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per scorer."""
        return pd.read_parquet(self.folder / "summary.parquet")

    def of(self, latent: int) -> pd.DataFrame:
        """The scores of one latent, a row per scorer; empty where it was not scored."""
        return self.table[self.table["latent"] == latent].reset_index(drop=True)


def score_folders(root: Path, dictionary: str) -> list[Path]:
    """Complete scores of a dictionary's explanations in a workspace, by name."""
    found = [p for p in sorted((root / "scores").glob(f"{dictionary}.*")) if (p / MANIFEST).is_file()]
    return [p for p in found if read_manifest(p).metadata.get("dictionary") == dictionary]
