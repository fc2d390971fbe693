"""Reading cards of evidence: ``trust/<dictionary>/``, made by ``workbench trust DICTIONARY``. Neither torch nor h5py is
needed.

``cards.parquet`` has one row per latent. A number that was not computed, or that a latent fires too seldom
for, is null:

``n_fired``                       held-out tokens on which it fires
``seed_r, seed_chance``           best correlation in another seed of the dictionary, 99 % of chance for latents that
                                  fire as often; ``seed_partner``, ``seed_cofire`` (tokens on which both fire),
                                  ``seed_found`` (r >= 0.5 and above chance). Likewise ``model_seed_…``, ``untrained_…``
``agreement, agreement_chance``   cosine of encoder and decoder; 99 % of that with the other latents' decoders
``should, missed, absorbed``      tokens on which it should fire, is silent, is silent while another carries its
                                  direction; ``absorbed_share``, ``absorbed_chance`` (shares of ``should``),
                                  ``takers``, ``taker_tokens`` (who fires instead, and on how many)
``siblings``                      latents nearer in direction than 99.9 % of chance; ``sibling_ids``,
                                  ``sibling_cosines``
``effect, effect_low, effect_high, effect_n``  what ablating it at one token adds to the loss of the next 8 predictions,
                                  nats; ``effect_peers`` (median of latents of like frequency and size),
                                  ``effect_rank`` (share of those below it), ``effect_alone``, ``effect_alone_n`` (of a
                                  sample: with nothing else ablated in the same pass)
``rule, label_f1, label_f1_chance, label_precision, label_recall, label_hard_accuracy, label_hard_precision,
label_hard_recall, label_n, label_n_rule, label_n_hard``   its best rule on held-out text and on hard negatives
``stability, stability_chance, stability_n``   cosine of the top contexts of two halves of the text
``score, word``                   calibrated share of planted latents among those with such numbers, and what that is
                                  called
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae.errors import UsageError
from workbench.results.result import Result

WELL, MIXED, WEAK = "well supported", "mixed", "weakly supported"
LIMITS = (0.5, 0.9)  # scores from which a latent is called mixed and well supported


@dataclass(frozen=True)
class Field:
    """One piece of evidence on a card: its columns, and what to know when reading it."""

    name: str  # what it is called
    value: str  # column
    chance: str  # column of what chance gives; empty: none
    n: str  # column of what it rests on
    unit: str  # of n
    meaning: str
    against: str  # what the chance level is
    trap: str
    needs: str = ""  # role in ``missing`` that says why it was not computed
    low_is_good: bool = False


FIELDS: tuple[Field, ...] = (
    Field(
        "Another seed of the dictionary",
        "seed_r",
        "seed_chance",
        "seed_cofire",
        "tokens both fire on",
        "Best correlation with a latent of a dictionary that differs in its seed alone",
        "99 % of chance for latents that fire as often",
        "A dictionary finds again what is easy to find, and that includes single tokens",
        "seed",
    ),
    Field(
        "Another seed of the model",
        "model_seed_r",
        "model_seed_chance",
        "model_seed_cofire",
        "tokens both fire on",
        "Best correlation with a latent of the same model trained from another initialisation",
        "99 % of chance for latents that fire as often",
        "Both models read the same text: part of it is shared input",
        "model_seed",
    ),
    Field(
        "The untrained model",
        "untrained_r",
        "untrained_chance",
        "untrained_cofire",
        "tokens both fire on",
        "Best correlation with a latent of a dictionary of the model before training",
        "99 % of chance for latents that fire as often",
        "Found there, it says which token stands here, and needs no training: a token detector",
        "untrained",
        low_is_good=True,
    ),
    Field(
        "Encoder and decoder agree",
        "agreement",
        "agreement_chance",
        "n_fired",
        "tokens it fires on",
        "Cosine of the direction it reads and the direction it writes",
        "99 % of the cosines of its encoder with the other latents' decoders",
        "Encoders also subtract what other latents would add, so a good latent may stay well below 1",
        "agreement",
    ),
    Field(
        "Absorbed",
        "absorbed_share",
        "absorbed_chance",
        "should",
        "tokens it should fire on",
        "Share of the tokens on which its direction is there, but another latent fires for it",
        "the same with the other latents' decoders exchanged",
        "A direction shared by two ideas counts too: look at who fires instead",
        needs="absorbed",
        low_is_good=True,
    ),
    Field(
        "Effect on the loss",
        "effect",
        "effect_peers",
        "effect_n",
        "tokens it is ablated on",
        "What ablating it at a token it fires on adds to the loss of the next 8 predictions, nats",
        "median of 20 latents of like frequency and magnitude",
        "Where other latents make up for it, it looks like nothing",
        "effect",
    ),
    Field(
        "Rule on held-out text",
        "label_f1",
        "label_f1_chance",
        "label_n",
        "tokens it fires strongly on",
        "F1 of its best rule for where it fires strongly: precision and recall in one",
        "F1 of as many tokens at random",
        "A rule may fit and leave out what makes the latent interesting",
        "label",
    ),
    Field(
        "Rule on near misses",
        "label_hard_accuracy",
        "",
        "label_n_hard",
        "hard negatives",
        "Balanced accuracy among as many strong tokens as silent ones that look most like them; a rule that names the"
        " token alone gets 0.5",
        "0.5",
        "Near misses share tokens, not meaning",
        "label",
    ),
    Field(
        "Same contexts in both halves",
        "stability",
        "stability_chance",
        "stability_n",
        "contexts of a half",
        "Cosine of the tokens around its strongest firings in two halves of the text",
        "95 % of its cosines with other latents",
        "It sees tokens: a latent for one idea in many words is low here",
    ),
)


class Trust(Result):
    """Cards of one dictionary; open with :meth:`open`.

    ``metadata``: dictionary, model, hook, text, n_tokens, min_firings, ``others`` (role -> id), ``missing`` (role ->
    why), ``agreement`` of ablations many and one at a time, ``calibrated``.
    """

    kind, noun, verb = "trust", "cards of evidence", "trust DICTIONARY"

    @classmethod
    def open(cls, folder: str | Path) -> Trust:
        """Open a folder of cards.

        Raises:
            MissingError: not there or not complete. CorruptError: another kind of result, or the table is gone.
        """
        folder = Path(folder)
        return cls(folder, cls.read_tables(folder, ("cards",)))

    @cached_property
    def cards(self) -> pd.DataFrame:
        """One row per latent; see the module docstring. Not to be written to."""
        return pd.read_parquet(self.folder / "cards.parquet")

    @cached_property
    def _position(self) -> dict[int, int]:
        return {int(latent): i for i, latent in enumerate(self.cards["latent"].to_numpy())}

    def card(self, latent: int) -> dict[str, Any]:
        """A latent's row as plain values; what was not computed is None.

        Raises:
            UsageError: the dictionary has no such latent.
        """
        if latent not in self._position:
            raise UsageError(f"latent {latent} is not in {self.id} (it has {len(self.cards):,}).")
        return {k: plain(v) for k, v in self.cards.iloc[self._position[latent]].to_dict().items()}


def plain(value: Any) -> Any:
    """A cell as JSON has it: numbers, text and lists; what is missing is None."""
    if isinstance(value, (np.ndarray, list)):
        return [plain(v) for v in value]
    if value is None or value is pd.NA:
        return None
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
