"""Reading transplants: ``transplants/<a>__<b>/``, made by ``workbench transplant A B``. Neither torch nor h5py is
needed.

A latent of B is taken out of B's forward pass and something else put in its place (the arms of
:mod:`workbench.analysis.transplant.measure`). ``repaired`` = 1 - KL(arm) / KL(ablated): the share of the ablation's
damage that what was put in repairs; 1 = B goes on as if nothing had been done, 0 = no better than nothing, below 0 =
worse than nothing. Tables (Parquet):

``pairs``    one row per latent of B: latent, partner, r, r_given_token, n_fired, cosine (of the partner's mapped
             decoder row with the latent's own), scale, n_sequences, n_tokens, per arm kl_<arm> and loss_<arm>
             (nats per token above the unedited model), per arm but ``ablated`` the share repaired with <arm>_low and
             <arm>_high (95 % bootstrap over sequences), and loss_repaired with its interval where the ablation's added
             loss is above 0
``summary``  per arm, over matched latents: n, median, low, high (95 % bootstrap over latents), pooled (all damage
             together)
``curve``    per predictor (r, r_given_token, cosine), arm and bin of equally many latents: x_low, x, x_high, n, median,
             low, high
``order``    Spearman's rank correlation of each predictor with the share repaired: n, value, low, high
"""

from __future__ import annotations

import pandas as pd

from workbench.results.result import TabledResult

TABLES = ("pairs", "summary", "curve", "order")
REPAIRS = ("transplant", "activation", "other", "random", "ceiling")
PREDICTORS = ("r", "r_given_token", "cosine")
SHOWN = {
    "transplant": "partner, mapped",
    "activation": "partner's activation, own direction",
    "other": "another latent's partner",
    "random": "random direction",
    "ceiling": "ceiling",
}
PREDICTOR_NAMES = {"r": "r", "r_given_token": "r given the token", "cosine": "cosine of mapped decoder rows"}


class TransplantRecords(TabledResult):
    """One transplant; open with :meth:`open`.

    ``metadata``: a, b (each: dictionary, model, revision, layer), matches, ceiling (what it is), level, map (n_pairs,
    ridge, cosine of left-out pairs), n_sequences.
    """

    kind, noun, verb = "transplants", "a transplant", "transplant DICTIONARY_A DICTIONARY_B"
    tables = TABLES

    @property
    def pairs(self) -> pd.DataFrame:
        """One row per latent of B."""
        return self.table("pairs")

    def of(self, latent: int, partner: int) -> pd.Series | None:
        """The row of a pair; None where it was not transplanted."""
        found = self.pairs[(self.pairs["latent"] == latent) & (self.pairs["partner"] == partner)]
        return None if found.empty else found.iloc[0]
