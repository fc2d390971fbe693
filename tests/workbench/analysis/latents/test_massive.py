"""Massive rows of a record: how many, what they hold, and where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.workbench.fakes import FakeDictionary, FakeStore
from workbench.analysis.latents import massive
from workbench.analysis.latents.records_build import build_records

HOOK, VOCAB = "h", [f"<t{i}>" for i in range(50)]


@pytest.fixture
def store():
    made = FakeStore.random()
    ids, _, pos = made.tokens(slice(0, len(made)))
    made.x[(pos == 1) & (ids < 25)] *= 500  # position 1 on half of the tokens
    return made


def test_they_are_counted_where_they_are(store, monkeypatch):
    monkeypatch.setattr(massive, "MAX_BLOCK", 100)  # the store's 1,280 rows do not divide by it
    built = build_records(FakeDictionary(), store, HOOK, VOCAB, n_tokens=None, window=8)
    about = built.metadata["massive"]
    ids, _, pos = store.tokens(slice(0, len(store)))
    long = (pos == 1) & (ids < 25)
    assert about["n"] == long.sum() > 5 and about["n_rows"] == len(store)
    assert about["positions"] == [[1, int(long.sum())]]
    assert dict(map(tuple, about["tokens"])).items() <= dict(zip(*np.unique(ids[long], return_counts=True))).items()
    square = store.x.double().square().sum(1)
    assert about["square_share"] == pytest.approx(float(square[torch.from_numpy(long)].sum() / square.sum()))
    held = {(p, t): (n, share) for p, t, n, share in about["places"]}
    assert len(held) == min(massive.PLACES, len(np.unique(ids[long]))) and all(p == 1 for p, _ in held)
    for (_, token), (n, share) in held.items():
        here = torch.from_numpy(long & (ids == token))
        assert n == int(here.sum()) and share == pytest.approx(float(square[here].sum() / square.sum()))
    assert [s for _, s in held.values()] == sorted((s for _, s in held.values()), reverse=True)
    assert built.numbers["massive_share"] == pytest.approx(long.mean(), abs=1e-6)
    active = np.asarray(built.codes.matrix().toarray() > 0)
    assert built.table["n_massive"].tolist() == active[long].sum(0).tolist() and active[long].any()
    assert built.numbers["l0_inliers"] == pytest.approx(active[~long].sum() / (~long).sum(), abs=1e-4)
    assert built.numbers["l0"] == pytest.approx(active.mean(0).sum(), abs=1e-4)


def test_a_record_without_them_says_so_too():
    plain = build_records(FakeDictionary(), FakeStore.random(), HOOK, VOCAB, n_tokens=None, window=8)
    assert plain.metadata["massive"]["n"] == 0 and plain.metadata["massive"]["places"] == []
    assert plain.numbers["massive_share"] == plain.numbers["massive_square_share"] == 0.0


def test_rows_of_a_skipped_sequence_are_none_of_the_record(store):
    whole = massive.Massive.of(store, HOOK, [slice(64, len(store))])
    store.x[:64] = float("nan")  # as a store gives a sequence that was left out
    found = massive.Massive.of(store, HOOK, [slice(0, len(store))])
    assert found.found == whole.found and found.found.n_massive > 5
    assert np.array_equal(found.rows, whole.rows) and np.array_equal(found.lengths, whole.lengths)
