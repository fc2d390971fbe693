"""The GPU kernels, run by Triton's interpreter where there is no GPU: the same numbers as plain PyTorch."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
pytest.importorskip("triton", reason="Triton is not installed (Linux only)")

from sae import TopKConfig, Trainer
from sae.backends import pick
from sae.backends.triton import available

pytestmark = pytest.mark.skipif(not available(), reason="neither a GPU nor Triton's interpreter")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("d", [5, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_equal_the_fallback(d: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(d)
    n, k, f = 9, 4, 16
    rows, weight = (torch.randn(m, d, generator=g, dtype=torch.float64).to(DEVICE, dtype) for m in (n, f))
    values = torch.rand(n, k, generator=g, dtype=torch.float64).to(DEVICE, dtype)
    indices = torch.stack([torch.randperm(f - 2, generator=g)[:k].sort().values for _ in range(n)]).to(
        DEVICE
    )  # two latents stay empty
    fast, plain = pick("triton", rows), pick("fallback", rows)
    torch.testing.assert_close(fast.decode(values, indices, weight), plain.decode(values, indices, weight))
    torch.testing.assert_close(fast.dots(rows, weight, indices), plain.dots(rows, weight, indices))
    t = plain.transpose(indices.flatten(), f)
    source = torch.arange(n, device=DEVICE).repeat_interleave(k)
    torch.testing.assert_close(
        fast.scatter(t, values.flatten(), source, rows), plain.scatter(t, values.flatten(), source, rows)
    )


@pytest.mark.parametrize("n, k, f, d", [(1, 1, 1, 1), (0, 3, 8, 5), (3, 5, 7, 1030), (17, 2, 33, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_shapes_and_half_precision(n: int, k: int, f: int, d: int, dtype: torch.dtype) -> None:
    """One row, no rows, more columns than one program takes; 16-bit numbers within a unit in the last place."""
    g = torch.Generator().manual_seed(d)
    rows, weight = (torch.randn(m, d, generator=g).to(DEVICE, dtype) for m in (n, f))
    values = torch.rand(n, k, generator=g).to(DEVICE, dtype)
    indices = (
        torch.stack([torch.randperm(f, generator=g)[:k].sort().values for _ in range(n)]) if n else torch.empty(0, k)
    )
    indices = indices.long().to(DEVICE)
    fast, exact = pick("triton", rows), weight.double()[indices.flatten()].view(n, k, d)
    close = {"rtol": 2**-7, "atol": 2**-7} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    decoded, dots = fast.decode(values, indices, weight), fast.dots(rows, weight, indices)
    assert decoded.dtype == dots.dtype == dtype
    torch.testing.assert_close(decoded.double(), (values.double()[..., None] * exact).sum(1), **close)
    torch.testing.assert_close(dots.double(), (rows.double()[:, None] * exact).sum(2), **close)
    t = fast.transpose(indices.flatten(), f)
    source = torch.arange(n, device=DEVICE).repeat_interleave(k)
    scattered = torch.zeros(f, d, dtype=torch.float64, device=DEVICE)
    scattered.index_add_(0, indices.flatten(), values.double().flatten()[:, None] * rows.double()[source])
    torch.testing.assert_close(fast.scatter(t, values.flatten(), source, rows).double(), scattered, **close)


def test_training_steps_equal_the_fallback() -> None:
    batches = [torch.randn(16, 12, generator=torch.Generator().manual_seed(s)).double() for s in range(2)]
    trainers = [
        Trainer(TopKConfig(d_in=12, d_sae=24, k=3, aux_every=2, dtype="float64", backend=b), device=DEVICE)
        for b in ("triton", "fallback")
    ]
    for x in batches:
        for t in trainers:
            t.since_F[:6] = t.config.dead_after + 1
        a, b = (float(t.step(x).loss) for t in trainers)
        assert a == pytest.approx(b, rel=1e-9)
    for p, q in zip(trainers[0].model.parameters(), trainers[1].model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)


def test_rows_and_latents_without_entries() -> None:
    """Rows that keep nothing (k = 0, or values of zero), and a list of entries that is empty."""
    g = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(4, 7, generator=g).to(DEVICE), torch.randn(6, 7, generator=g).to(DEVICE)
    fast = pick("triton", rows)
    none = torch.empty(4, 0, dtype=torch.int64, device=DEVICE)
    assert (fast.decode(none.float(), none, weight) == torch.zeros(4, 7, device=DEVICE)).all()
    assert fast.dots(rows, weight, none).shape == (4, 0)
    empty = fast.transpose(none.flatten(), 6)
    assert (fast.scatter(empty, none.flatten().float(), none.flatten(), rows) == torch.zeros(6, 7, device=DEVICE)).all()
    indices = torch.arange(8, device=DEVICE).remainder(6).view(4, 2)
    values = torch.ones(4, 2, device=DEVICE)
    values[1] = 0
    decoded = fast.decode(values, indices, weight)
    assert (decoded[1] == 0).all()
    torch.testing.assert_close(decoded[0], weight[0] + weight[1])
