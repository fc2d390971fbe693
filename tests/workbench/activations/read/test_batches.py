"""Order and coverage of shuffled batches: always the same, every row once per epoch, however they are read."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from scipy.stats import spearmanr

from sae import system
from sae.errors import UsageError
from tests.workbench.activations.small import SPEC, TOKENS, content, in_child, make, make_spec, producer_of, truth
from workbench.activations import ActivationStore
from workbench.activations.format.errors import ResumeMismatch, StoreIncomplete
from workbench.activations.read.shuffle import EpochOrder, Order, permutation, splitmix64

BOTH = ["a", "b"]

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the test itself forks")


def all_of(batches) -> torch.Tensor:
    return torch.cat(list(batches))


def rows_of(x: torch.Tensor) -> list[tuple[float, ...]]:
    return sorted(map(tuple, x.tolist()))


def test_splitmix64_is_the_published_one():
    """First outputs for seed 0 (Vigna's reference implementation)."""
    counters = (np.arange(1, 4, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(v) for v in splitmix64(counters).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_the_order_is_pinned():
    """A change of these numbers is a change of every training run: raise SHUFFLE_VERSION instead."""
    assert permutation(8, 1, 2, 3).tolist() == PINNED_PERMUTATION
    order = EpochOrder(Order(rows_per_shard=48, n_rows=176, first=0, last=160, block_rows=5, seed=3, group_rows=20), 1)
    assert order.group_units(0).tolist() == PINNED_UNITS


PINNED_PERMUTATION = [0, 6, 1, 4, 7, 2, 5, 3]
PINNED_UNITS = [0, 13, 15, 17]


@pytest.mark.parametrize("window", [0, 1, 2])
@pytest.mark.parametrize("memory", [1 << 20, 700, 1])
def test_every_row_once_per_epoch(pristine, window, memory):
    s = ActivationStore.open(pristine)
    batches = s.batches("x", 7, seed=3, source=BOTH, epochs=3, window=window, memory_limit=memory)
    got = all_of(batches)
    n = SPEC.train_rows
    expected = torch.from_numpy(np.concatenate([truth(SPEC, "h000"), truth(SPEC, "h002")], axis=1))[:n]
    assert len(got) == 3 * n and len(list(batches)) == len(batches)
    for epoch in range(3):
        assert rows_of(got[epoch * n : (epoch + 1) * n]) == rows_of(expected)
    assert not torch.equal(got[:n], got[n : 2 * n]) and not torch.equal(got[:n], expected)


@pytest.mark.parametrize("memory", [1 << 20, 700])
def test_the_shuffle_reaches_across_shards(pristine, memory):
    """Where a row comes from says nothing about when it is read: rank correlation near zero, every shard in the first
    quarter.
    """
    s = ActivationStore.open(pristine)
    index = {row.tobytes(): i for i, row in enumerate(truth(SPEC, "h000"))}
    shard_of = np.searchsorted([SPEC.rows(i)[1] for i in range(SPEC.n_shards)], np.arange(SPEC.n_rows), side="right")
    correlations, seen = [], []
    for seed in range(40):
        rows = all_of(s.batches("x", 8, seed=seed, source="a", epochs=1, memory_limit=memory)).numpy()
        order = [index[row.tobytes()] for row in rows]
        correlations.append(spearmanr(np.arange(len(order)), order).statistic)
        seen.append(len(set(shard_of[order[: len(order) // 4]])))
    assert abs(np.mean(correlations)) < 0.1 and np.max(np.abs(correlations)) < 0.8
    assert np.mean(seen) > SPEC.n_shards - 1.5


def test_splits_do_not_meet(pristine):
    s = ActivationStore.open(pristine)
    train, held, every = (
        rows_of(all_of(s.batches("y", 16, seed=0, source="a", split=split, epochs=1)))
        for split in ("train", "heldout", "all")
    )
    assert sorted(train + held) == every and len(held) == 2 * SPEC.rows_per_seq
    assert list(s.heldout) == [20, 21]


@pytest.mark.faults
def test_resume_at_any_step(pristine):
    """Fault 23: another number of threads, another place to start: the same batches in the same order."""
    s = ActivationStore.open(pristine)
    batches = s.batches("x", 9, seed=5, source=BOTH, epochs=2, memory_limit=1500)
    whole = list(batches)
    for step in (0, 1, 2, 7, len(whole) // 2, len(whole) - 1):
        for threads in (1, 3):
            again = list(
                s.batches("x", 9, seed=5, source=BOTH, epochs=2, memory_limit=1500, threads=threads).starting_at(step)
            )
            assert len(again) == len(whole) - step and all(torch.equal(a, b) for a, b in zip(again, whole[step:]))
    assert list(batches.starting_at(len(whole))) == []
    assert batches.state(4) == {"epoch": 0, "row": 36}
    assert batches.state(18) == {"epoch": 1, "row": 162 - SPEC.train_rows}


def test_kept_batches_are_never_overwritten(pristine):
    """Memory of dropped batches is used again; of kept ones, or of kept views, never."""
    batches = ActivationStore.open(pristine).batches("x", 9, seed=5, source=BOTH, epochs=4)
    stream, kept, copies, places = iter(batches), [], [], set()
    for i in range(40):
        x = next(stream)
        places.add(x.data_ptr())
        if i % 3 == 0:
            kept.append(x if i % 2 else x[2:4].T)
            copies.append(kept[-1].clone())
        del x
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert len(places) < 40


def test_endless_batches_have_one_size(pristine):
    batches = ActivationStore.open(pristine).batches("y", 50, seed=1, source="a")
    stream = iter(batches)
    assert {len(next(stream)) for _ in range(12)} == {50}
    with pytest.raises(TypeError, match="never end"):
        len(batches)


@pytest.mark.faults
@pytest.mark.parametrize(
    "change",
    [
        {"seed": 6},
        {"batch_size": 10},
        {"window": 1},
        {"split": "all"},
        {"memory_limit": 900},
        {"hook": "y", "source": "a"},
    ],
)
def test_resume_with_another_order_is_refused(pristine, change):
    """Fault 23: batch size, seed, buffer … ; `allow_reshuffle` lets it pass."""
    s = ActivationStore.open(pristine)
    values = {"hook": "x", "batch_size": 9, "seed": 5, "source": BOTH, "memory_limit": 1500}
    contract = s.batches(**values).contract()
    assert s.batches(**values).resume(contract, 4).start == 4
    with pytest.raises(ResumeMismatch, match="the checkpoint has"):
        s.batches(**values | change).resume(contract, 4)
    assert s.batches(**values | change).resume(contract, 4, allow_reshuffle=True).start == 4


@pytest.mark.faults
def test_another_store_is_refused(pristine, tmp_path):
    """Fault 24: the store grew between the runs."""
    contract = ActivationStore.open(pristine).batches("y", 4, seed=0, source="a").contract()
    spec = make_spec(n_seq=20, heldout_seqs=2)
    other = ActivationStore.open(make(tmp_path / "s", spec))
    with pytest.raises(ResumeMismatch, match="store_id"):
        other.batches("y", 4, seed=0, source="a").resume(contract, 1)


@pytest.mark.faults
def test_a_shard_lost_between_runs(store):
    """Fault 24: the store lost a shard; an open one finds out when it gets there."""
    s = ActivationStore.open(store)
    (store / "shards" / "000002.h5").unlink()
    with pytest.raises(StoreIncomplete, match="000002"):
        all_of(s.batches("x", 8, seed=0, source="a", epochs=1))
    with pytest.raises(StoreIncomplete):
        ActivationStore.open(store)


@pytest.mark.faults
@forks
def test_forked_readers(pristine):
    """Fault 22: children that inherit an open store read the same batches."""
    s = ActivationStore.open(pristine)
    batches = s.batches("x", 9, seed=5, source=BOTH, epochs=1)
    whole = all_of(batches)
    for _ in range(3):
        assert (
            in_child(lambda: (_ for _ in ()).throw(AssertionError) if not torch.equal(all_of(batches), whole) else None)
            == 0
        )


class Steps(torch.utils.data.IterableDataset):
    """One process' share of the steps, by worker number."""

    def __init__(self, batches, n):
        self.batches, self.n = batches, n

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for i in range(first, self.n, step):
            yield i, next(iter(self.batches.starting_at(i)))


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    "workers, how",
    [
        (0, None),
        pytest.param(2, "fork", marks=forks),
        pytest.param(8, "fork", marks=forks),
        (1, "spawn"),
    ],
)
def test_data_loader_workers(pristine, workers, how):
    """Fault 22: forked and fresh loader workers, each taking its steps: together the same batches."""
    batches = ActivationStore.open(pristine).batches("x", 9, seed=5, source=BOTH, epochs=1)
    whole = list(batches)
    loader = torch.utils.data.DataLoader(
        Steps(batches, len(whole)), batch_size=None, num_workers=workers, multiprocessing_context=how
    )
    found = dict(loader)
    assert sorted(found) == list(range(len(whole))) and all(torch.equal(found[i], whole[i]) for i in found)


@pytest.mark.skipif(system.windows(), reason="an open file cannot be removed there")
@pytest.mark.faults
def test_reading_while_shards_are_added(store, pristine):
    """Fault 21: an open store keeps what it had; an incomplete one cannot be opened; `refresh` is explicit."""
    s = ActivationStore.open(store)
    first = all_of(s.batches("x", 9, seed=5, source=BOTH, epochs=1))
    running = iter(s.batches("x", 9, seed=5, source=BOTH, epochs=1, memory_limit=700))
    got = [next(running)]
    for name in ("seal.json", "shards/000001.h5"):
        (store / name).unlink()
    with pytest.raises(StoreIncomplete, match="1 of 4 shards are missing"):
        ActivationStore.open(store)
    writer = threading.Thread(target=make, args=(store,), kwargs={"producer": producer_of(SPEC, 0.02)})
    writer.start()
    while writer.is_alive():
        for path in (store / "shards").iterdir():
            assert path.stat().st_size == (pristine / "shards" / path.name).stat().st_size
        time.sleep(0.005)
    writer.join()
    got += list(running)
    assert torch.equal(torch.cat(got), all_of(s.batches("x", 9, seed=5, source=BOTH, epochs=1, memory_limit=700)))
    assert torch.equal(all_of(s.refresh().batches("x", 9, seed=5, source=BOTH, epochs=1)), first)
    assert content(store) == content(pristine)


@pytest.mark.faults
def test_memory_stays_within_its_buffers(tmp_path):
    """Fault 40: a 96 MiB store is read through 8 MiB of buffers; the process grows by no more than those and 64 MiB."""
    spec = make_spec(
        streams=(make_spec().streams[0].model_copy(update={"width": 1024}),),
        sources=make_spec().sources[:1],
        n_seq=192,
        ctx=129,
        seqs_per_shard=32,
        batch_size=16,
        block_rows=64,
        heldout_seqs=0,
    )
    tokens = np.zeros((192, 129), np.int32)
    block = np.random.default_rng(0).normal(size=(16 * 128, 1024)).astype(np.float32)
    from workbench.activations.write.fill import fill

    fill(
        tmp_path / "s",
        spec,
        tokens,
        lambda lo, hi: ({"h000": block[: (min(hi, i + 16) - i) * 128]} for i in range(lo, hi, 16)),
    )
    batches = ActivationStore.open(tmp_path / "s").batches("x", 512, seed=0, epochs=1, memory_limit=8 << 20)
    assert batches.buffer_bytes <= (8 << 20) + 2 * 512 * 1024 * 4  # two batches beside the two groups
    before, peak, rows = resident(), 0, 0
    for x in batches:
        rows += len(x)
        peak = max(peak, resident())
    assert rows == spec.n_rows
    assert peak - before <= batches.buffer_bytes + (32 << 20)


def resident() -> int:
    return psutil.Process().memory_info().rss


def test_big_stores_are_listed_in_bounded_memory():
    """A billion rows: units grow so that their list stays short, and still cover every row once."""
    order = Order(rows_per_shard=1 << 20, n_rows=(1 << 30) + 12345, first=0, last=(1 << 30), block_rows=64, seed=1)
    assert order.n_shards * order.units_per_shard <= 1 << 20 and order.unit_rows % 64 == 0
    assert order.epoch_rows == 1 << 30
    epoch = EpochOrder(order, 0)
    assert int(epoch.row0[-1]) == 1 << 30 and len(np.unique(epoch.units)) == len(epoch.units)


def test_bad_requests(pristine):
    s = ActivationStore.open(pristine)
    with pytest.raises(UsageError, match="several sources"):
        s.batches("x", 4, seed=0)
    with pytest.raises(UsageError, match="split 'test'"):
        s.batches("x", 4, seed=0, source="a", split="test")
    with pytest.raises(UsageError, match="batch_size = 0"):
        s.batches("x", 0, seed=0, source="a")
    with pytest.raises(UsageError, match=r"no hook 'xx' of source 'a' \(did you mean 'x'"):
        s.read("xx", source="a")
    assert TOKENS.shape == (22, 9)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("memory", [1 << 20, 700])
def test_shares_make_up_the_same_batches(pristine, parts, memory, monkeypatch):
    """Every process reads its own rows alone, and together they hold exactly the batch, row for row."""
    s = ActivationStore.open(pristine)
    batches = s.batches("x", 13, seed=3, source=BOTH, epochs=2, memory_limit=memory)
    whole, read, real = list(batches), [], type(s.pool).piece

    def counted(self, out, stream, lo, hi):
        read.append(hi - lo)
        return real(self, out, stream, lo, hi)

    monkeypatch.setattr(type(s.pool), "piece", counted)
    shares = [list(batches.share(part, parts)) for part in range(parts)]
    assert sum(read) == 2 * 2 * SPEC.train_rows  # two sources, two epochs, nothing twice
    assert [len(each) for each in shares] == [len(whole)] * parts
    for batch, *pieces in zip(whole, *shares, strict=True):
        got = torch.full_like(batch, torch.nan)
        for piece in pieces:
            assert piece.batch_size == len(batch)
            got[piece.batch_index] = piece.rows
        assert torch.equal(got, batch)
    later = next(iter(batches.share(parts - 1, parts).starting_at(3)))
    assert torch.equal(later.rows, shares[-1][3].rows) and torch.equal(later.batch_index, shares[-1][3].batch_index)
