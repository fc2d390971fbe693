"""A stream gives the very batches of the complete store, from a bounded ring of shards."""

from __future__ import annotations

import os
import pickle
import signal

import numpy as np
import pytest
import torch

from sae.errors import UsageError
from tests.workbench.activations.small import SPEC, TOKENS, in_child, make_spec, producer_of, truth
from workbench.activations import ActivationStore, StreamingStore, fill
from workbench.activations.format.errors import NonFiniteActivation, StoreBusy

SMALL = make_spec(seqs_per_shard=2)  # 11 shards of two sequences


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> ActivationStore:
    folder = tmp_path_factory.mktemp("ring") / "complete"
    fill(folder, SMALL, TOKENS, producer_of(SMALL))
    return ActivationStore.open(folder)


def stream(folder, capacity=4, producer=None, spec=SMALL) -> StreamingStore:
    return StreamingStore(folder, spec, TOKENS, producer or producer_of(spec), capacity=capacity)


@pytest.mark.parametrize("capacity", [2, 4, 7])
@pytest.mark.parametrize("start", [0, 5, 13])
def test_same_batches_from_a_bounded_ring(tmp_path, complete, capacity, start):
    wanted = list(
        complete.batches(
            ["x"], 7, seed=3, source=["a", "b"], epochs=3, window=capacity // 2, memory_limit=900
        ).starting_at(start)
    )
    with stream(tmp_path / "s", capacity) as s:
        got, most = [], 0
        for x in s.batches(["x"], 7, seed=3, source=["a", "b"], epochs=3, memory_limit=900, start=start):
            got.append(x)
            most = max(most, len(s.present()))
        assert len(got) == len(wanted) and all(torch.equal(a, b) for a, b in zip(got, wanted))
        assert 0 < most <= capacity


def test_rows_and_sequences_are_made_when_asked_for(tmp_path):
    with stream(tmp_path / "s") as s:
        assert s.present() == []
        r = SMALL.rows_per_seq
        assert np.array_equal(s.sequence(9, "y", "a").numpy(), truth(SMALL, "h001")[9 * r : 10 * r])
        assert s.present() == [4]
        ids, seq, pos = s.tokens(slice(3, 40))
        assert np.array_equal(ids, TOKENS[seq, pos])


def test_a_new_iteration_ends_the_one_before(tmp_path, complete):
    with stream(tmp_path / "s") as s:
        first = iter(s.batches("x", 7, seed=1, source="a", memory_limit=300))
        next(first)
        again = list(s.batches("x", 7, seed=2, source="a", epochs=1, memory_limit=300))
        wanted = list(complete.batches("x", 7, seed=2, source="a", epochs=1, window=2, memory_limit=300))
        assert all(torch.equal(a, b) for a, b in zip(again, wanted, strict=True))


def test_the_makers_error_reaches_the_reader(tmp_path):
    def broken(lo, hi):
        for batch in producer_of(SMALL)(lo, hi):
            if lo >= 10:
                batch = {**batch, "h000": np.full_like(batch["h000"], np.nan)}
            yield batch

    with stream(tmp_path / "s", producer=broken) as s, pytest.raises(NonFiniteActivation, match="NaN"):
        list(s.batches("x", 7, seed=0, source="a", epochs=2, memory_limit=300))


@pytest.mark.faults
def test_killed_in_the_middle(tmp_path, complete):
    """Faults 1 and 2: after a kill the next stream starts from what is good, and gives the same batches."""

    def work():
        with stream(tmp_path / "s") as s:
            for i, _ in enumerate(s.batches("x", 7, seed=3, source="a", memory_limit=300)):
                if i == 11:
                    os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    wanted = list(complete.batches("x", 7, seed=3, source="a", epochs=1, window=2, memory_limit=300).starting_at(12))
    with stream(tmp_path / "s") as s:
        got = list(s.batches("x", 7, seed=3, source="a", epochs=1, memory_limit=300).starting_at(12))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert os.listdir(tmp_path / "s" / "tmp") == []


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="at least 2 shards"):
        stream(tmp_path / "a", capacity=1)
    with pytest.raises(UsageError, match="skip-sequence"):
        stream(tmp_path / "b", spec=make_spec(non_finite="skip-sequence"))
    with stream(tmp_path / "s") as s:
        with pytest.raises(UsageError, match="window = 3 shards needs room for 6"):
            s.batches("x", 7, seed=0, source="a", window=3)
        with pytest.raises(TypeError, match="cannot be sent"):
            pickle.dumps(s)
        with pytest.raises(StoreBusy), stream(tmp_path / "s"):
            pass
    assert SPEC.store_id != SMALL.store_id
