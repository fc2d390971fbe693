"""Tokens that are no data (BOS, pads inside sequences): zero on disk, and no row of any reader."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest

from tests.workbench.activations.small import CTX, N_SEQ, SPEC, make_spec, producer_of, truth
from workbench.activations import ActivationStore
from workbench.activations.format.seal import read_seal
from workbench.activations.read.shuffle import MAX_LISTED, EpochOrder, Order
from workbench.activations.write.fill import fill
from workbench.activations.write.verify import check
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
def mask():
    out = np.random.default_rng(4).random((N_SEQ, CTX)) < 0.4
    out[6] = False  # a whole sequence of another role
    return out


@pytest.fixture(scope="module", params=["ids", "rows", "both"])
def kept(request, tokens, mask):
    """Which tokens after position 0 are data: by ids, by the plan's row mask, by both."""
    by_ids, by_mask = tokens[:, 1:] != BOS, mask[:, 1:]
    return {"ids": by_ids, "rows": by_mask, "both": by_ids & by_mask}[request.param]


@pytest.fixture(scope="module")
def store(request, kept, tokens, mask, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s") / "small"
    named, marked = not kept[tokens[:, 1:] == BOS].any(), not kept[~mask[:, 1:]].any()
    spec = make_spec(exclude_ids=(BOS,) if named else (), row_mask=marked)
    fill(folder, spec, tokens, producer_of(spec), rows=mask if marked else None)
    return ActivationStore.open(folder)


def test_rows_are_the_tokens_that_are_data(store, tokens, kept):
    seq, pos = np.nonzero(kept)
    whole = truth(SPEC, "h000")[kept.ravel()]
    ids, at, positions = store.tokens()
    assert len(store) == kept.sum() == len(ids) and read_seal(store.path, store.spec)
    assert json.loads((store.path / "seal.json").read_text())["numbers"]["rows"] == len(store)
    assert (at == seq).all() and (positions == pos + 1).all() and (ids == tokens[seq, pos + 1]).all()
    assert np.array_equal(store.read("x", source="a").numpy(), whole)
    some = np.array([3, 30, 4, 17, 20])
    assert np.array_equal(store.read("x", some, "a").numpy(), whole[some])
    assert (
        np.array_equal(store.sequence(2, "x", "a").numpy(), whole[seq == 2])
        and len(store.sequence(5, "x", "a")) == (seq == 5).sum()
    )
    assert store.rows_of([7, 2]).tolist() == [*np.flatnonzero(seq == 7), *np.flatnonzero(seq == 2)]
    found, is_row = store.sequences_with_rows(range(N_SEQ))
    assert (found == tokens).all() and np.array_equal(is_row[:, 1:], kept) and not is_row[:, 0].any()
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


def test_a_deep_check_compares_what_is_data_with_the_plan(tmp_path, tokens, mask):
    spec = make_spec(row_mask=True)
    for name, rows in (("one", mask), ("two", ~mask)):
        fill(tmp_path / name, spec, tokens, producer_of(spec), rows=rows)
    assert check(tmp_path / "one", deep=True).ok
    for file in ("plan.h5", "seal.json"):  # whole by themselves, but of a plan in which other tokens are rows
        shutil.copy(tmp_path / "two" / file, tmp_path / "one" / file)
    found = check(tmp_path / "one", deep=True, quarantine=False)
    assert not found.ok and len(found.problems) >= SPEC.n_shards
    (tmp_path / "one" / "seal.json").unlink()
    said = check(tmp_path / "one", deep=True, quarantine=False).problems
    assert len(said) == SPEC.n_shards and all("tok/flags is not what the plan says" in why for _, why in said)


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
    assert make_spec(row_mask=True).store_id != SPEC.store_id and "row_mask" not in SPEC.model_dump(mode="json")


def test_a_store_with_a_row_mask_is_not_made_without_one(tmp_path, tokens):
    with pytest.raises(ValueError, match="row mask"):
        fill(tmp_path / "s", make_spec(row_mask=True), tokens, producer_of(make_spec(row_mask=True)))


def test_an_older_store_opens_and_says_its_rule_once(tmp_path, tokens):
    spec = make_spec(id="older")
    fill(tmp_path / "older", spec, tokens, producer_of(spec))
    store, said = ActivationStore.open(tmp_path / "older"), []
    for _ in range(2):
        store.check_tokenizer(None, "a model", Run(say=said.append))
    assert store.contract is None and len(store) == SPEC.n_rows
    assert len(said) == 1 and "old rule" in said[0]
