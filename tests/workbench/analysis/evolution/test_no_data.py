"""Where models run as rows are needed, a BOS inside a window is no data either: not trained on, not measured."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from workbench.analysis.evolution.analyse import HeldOut
from workbench.analysis.evolution.plan import make_plan
from workbench.analysis.evolution.recipe import EvolveRecipe
from workbench.analysis.evolution.snapshots import OnlineBatches
from workbench.models import load_tokenizer

BOS = 0


class Ids:
    """Stands for models: the row of a token is its number in the text and its id."""

    cache, sources = None, ()

    def rows(self, tokens: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(tokens[:, 1:].astype(np.float32))[..., None]


def text(n: int = 8, ctx: int = 12) -> np.ndarray:
    tokens = np.arange(1, 1 + n * ctx).reshape(n, ctx)
    tokens[:, 0] = BOS
    tokens[1, 4] = tokens[1, 9] = tokens[5, 7] = BOS
    return tokens


def taken(batches: OnlineBatches, n: int) -> list[list[float]]:
    return [x.reshape(-1).tolist() for x in itertools.islice(batches, n)]


def test_no_batch_holds_a_bos_and_an_epoch_holds_every_other_row_once() -> None:
    made: Any = OnlineBatches(Ids(), text(), 17, seed=3, group=8, excluded=(BOS, 999))  # type: ignore[arg-type]
    assert made.excluded == (BOS,) and made.contract()["excluded"] == [BOS]
    seen = taken(made, 10)  # 85 rows of 88: five batches an epoch
    first = [x for batch in seen[:5] for x in batch]
    assert sorted(first) == sorted(float(t) for t in text()[:, 1:].reshape(-1) if t != BOS)
    assert sorted(x for batch in seen[5:] for x in batch) == sorted(first) and seen[5:] != seen[:5]
    for step in (0, 3, 5, 8):
        assert taken(made.starting_at(step), 10 - step) == seen[step:], "it goes on anywhere"
    parts = [made.share(i, 2) for i in (0, 1)]
    for batch, *shares in zip(seen, *parts, strict=False):
        joined = torch.zeros(17)
        for share in shares:
            joined[share.batch_index] = share.rows.reshape(-1)
        assert joined.tolist() == batch, "two processes together have the rows of one"


def test_without_one_nothing_changes() -> None:
    tokens = text()
    tokens[tokens == BOS] = 500
    plain = OnlineBatches(Ids(), tokens, 17, seed=3, group=4)  # type: ignore[arg-type]
    same = OnlineBatches(Ids(), tokens, 17, seed=3, group=4, excluded=(BOS,))  # type: ignore[arg-type]
    assert taken(plain, 9) == taken(same, 9) and "excluded" not in same.contract()


def test_held_out_codes_of_a_bos_are_empty_and_it_is_not_measured() -> None:
    rows: Any = OnlineBatches(Ids(), text(), 1, seed=0, excluded=(BOS,))  # type: ignore[arg-type]
    held = HeldOut(text(), rows, None)  # type: ignore[arg-type]
    measured = torch.cat(list(held.batches(3))).reshape(-1)
    assert len(measured) == 85 and (measured != BOS).all()
    cc: Any = SimpleNamespace(d_sae=2, encode_sparse=lambda x: (torch.ones(len(x), 1), torch.zeros(len(x), 1).long()))
    from workbench.run import QUIET

    codes = held.encode(cc, QUIET).toarray()[:, 0].reshape(8, 11)
    assert ((codes == 0) == (text()[:, 1:] == BOS)).all()


def test_words_of_other_roles_are_no_rows_either() -> None:
    marked = np.random.default_rng(0).random(text().shape) < 0.5
    made: Any = OnlineBatches(Ids(), text(), 3, seed=3, group=8, excluded=(BOS,), marked=marked)  # type: ignore[arg-type]
    want = sorted(float(t) for t in text()[:, 1:][marked[:, 1:]] if t != BOS)
    epoch = len(want) // 3
    seen = taken(made, 2 * epoch)
    assert {x for batch in seen for x in batch} <= set(want) and len(want) - len(
        {x for b in seen[:epoch] for x in b}
    ) < 3
    assert taken(made.starting_at(4), epoch) == seen[4 : 4 + epoch]
    assert made.is_row.sum() == len(want)


def test_a_recipe_without_a_store_follows_its_tokenizers_contract() -> None:
    plan = make_plan(EvolveRecipe(revisions=("step0", "step512"), n_seq=64, ctx=32))
    assert (
        plan.excluded == plan.text.contract.excluded_ids and load_tokenizer("mini-pythia").bos_token_id in plan.excluded
    )  # type: ignore[union-attr]
