"""Batches fetched ahead: same order, bounded, errors in their place, no thread left behind."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from sae.prefetch import each_tensor, fetched_ahead, on_device
from sae.rows import LocalRows


def waiting() -> int:
    return sum(t.name == "to-device" for t in threading.enumerate())


def test_on_the_cpu_batches_pass_untouched():
    rows = [torch.ones(2), torch.zeros(2)]
    assert all(a is b for a, b in zip(on_device(rows, "cpu"), rows, strict=True)) and waiting() == 0


def test_order_is_kept_and_no_more_than_depth_is_begun_ahead():
    begun: list[int] = []

    def start(i: int):
        begun.append(i)
        return lambda: i * 10

    out = fetched_ahead(range(20), start, depth=2)
    assert next(out) == 0
    time.sleep(0.3)
    assert len(begun) <= 1 + 2 + 1  # delivered, queued, and one in the thread's hand
    assert list(out) == [i * 10 for i in range(1, 20)] and waiting() == 0


def test_an_error_comes_where_its_batch_would_have():
    def source():
        yield 1
        raise ValueError("the disk is gone")

    out = fetched_ahead(source(), lambda b: lambda: b)
    assert next(out) == 1
    with pytest.raises(ValueError, match="the disk is gone"):
        next(out)
    assert waiting() == 0


def test_closing_early_ends_the_thread_and_closes_the_source():
    closed = []

    def source():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    out = fetched_ahead(source(), lambda b: lambda: b)
    next(out)
    out.close()
    assert closed == [True] and waiting() == 0


def test_every_shape_of_batch_is_moved():
    batch = {"a": torch.ones(1), "b": (torch.ones(2), None)}
    moved = each_tensor(batch, lambda t: t + 1)
    assert moved["a"].item() == 2 and moved["b"][0].tolist() == [2, 2] and moved["b"][1] is None
    share = each_tensor(LocalRows(torch.ones(2, 1), torch.tensor([0, 3]), 5), lambda t: t + 1)
    assert share.rows.tolist() == [[2], [2]] and share.batch_index.tolist() == [1, 4] and share.batch_size == 5
    assert each_tensor(LocalRows(torch.ones(2, 1), None, 2), lambda t: t + 1).batch_index is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_rows_arrive_whole():
    rows = [torch.randn(1000, 64) for _ in range(8)]
    for there, here in zip(on_device(rows, "cuda"), rows, strict=True):
        assert there.is_cuda and torch.equal(there.cpu(), here)
