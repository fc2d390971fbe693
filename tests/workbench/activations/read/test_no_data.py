"""Tokens that are no data (BOS, pads inside sequences): zero on disk, and no row of any reader."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tests.workbench.activations.small import CTX, N_SEQ, SPEC, make_spec, producer_of, truth
from workbench.activations import ActivationStore
from workbench.activations.read.shuffle import MAX_LISTED, EpochOrder, Order
from workbench.activations.write.fill import fill
from workbench.run import Run

BOS = 0


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(3)
    out = rng.integers(1, 50, (N_SEQ, CTX)).astype(np.int32)
    out[rng.random(out.shape) < 0.2] = BOS
    out[5, 1:] = BOS  # a whole sequence without data
    return out


@pytest.fixture(scope="module")
def store(tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s") / "small"
    spec = make_spec(exclude_ids=(BOS,))
    fill(folder, spec, tokens, producer_of(spec))
    return ActivationStore.open(folder)


def test_rows_are_the_tokens_that_are_data(store, tokens):
    kept = tokens[:, 1:] != BOS
    seq, pos = np.nonzero(kept)
    whole = truth(SPEC, "h000")[kept.ravel()]
    ids, at, positions = store.tokens()
    assert len(store) == kept.sum() == len(ids) and (ids != BOS).all()
    assert (at == seq).all() and (positions == pos + 1).all() and (ids == tokens[seq, pos + 1]).all()
    assert np.array_equal(store.read("x", source="a").numpy(), whole)
    some = np.array([3, 90, 4, 17, 60])
    assert np.array_equal(store.read("x", some, "a").numpy(), whole[some])
    assert (
        np.array_equal(store.sequence(2, "x", "a").numpy(), whole[seq == 2]) and len(store.sequence(5, "x", "a")) == 0
    )
    assert store.rows_of([7, 2]).tolist() == [*np.flatnonzero(seq == 7), *np.flatnonzero(seq == 2)]
    assert np.array_equal(store.is_row(tokens)[:, 1:], kept) and not store.is_row(tokens)[:, 0].any()
    assert store.statistics("x", "a")["n"] == len(store)
    assert np.allclose(store.statistics("x", "a")["mean"], whole.mean(0), atol=1e-6)


def test_an_epoch_holds_every_row_once_and_no_other(store):
    def digests(x):
        return sorted(hashlib.sha256(row.tobytes()).hexdigest() for row in x)

    every = []
    for split in ("train", "heldout"):
        batches = store.batches("x", 7, seed=1, source="a", split=split, epochs=1)
        every += [row for b in batches for row in b.numpy().copy()]
    assert digests(every) == digests(store.read("x", source="a").numpy())


def test_skipped_ranges_are_counted_without_a_loop():
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(rng.random(5000) < 0.3)
    order = Order(512, 5000, 100, 4700, 5, 3, 200, skipped=tuple((int(r), int(r) + 1) for r in rows))
    kept = np.setdiff1d(np.arange(100, 4700), rows)
    assert order.epoch_rows == len(kept)
    units = [r for u in range(len(order.unit_sizes)) for lo, hi in order.kept(u) for r in range(lo, hi)]
    assert units == kept.tolist() and EpochOrder(order, 0).row0[-1] == len(kept)
    assert len(rows) > MAX_LISTED and len(order.contract()["skipped"]) == 64  # a digest, not a list
    other = Order(512, 5000, 100, 4700, 5, 3, 200, skipped=order.skipped[1:])
    assert other.contract() != order.contract()


def test_stores_without_such_tokens_are_as_before():
    assert make_spec().store_id == SPEC.store_id and "exclude_ids" not in SPEC.model_dump(mode="json")
    assert make_spec(exclude_ids=(0,)).store_id != SPEC.store_id


def test_an_older_store_opens_and_says_its_rule_once(tmp_path, tokens):
    spec = make_spec(id="older")
    fill(tmp_path / "older", spec, tokens, producer_of(spec))
    store, said = ActivationStore.open(tmp_path / "older"), []
    for _ in range(2):
        store.check_tokenizer(None, "a model", Run(say=said.append))
    assert store.contract is None and len(store) == SPEC.n_rows
    assert len(said) == 1 and "old rule" in said[0]
